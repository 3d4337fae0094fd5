"""Control tokens in what the user has written: text, unless the profile says otherwise."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer, normalizers

from mvw_cli import LoadedModel, UsageProblem

_MARKS = range(0xF0002, 0xFFFFE)
"""Private-use characters; transformers has a use for the two before."""
_copies: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def as_text(loaded: LoadedModel, text: str, held: Mapping[str, bool]) -> tuple[LoadedModel, str]:
    """Return by what and which text to encode, so that control tokens in it are text.

    That is the model and the text themselves where the profile wants control tokens. Else each is
    broken by a mark, so that neither processor nor tokenizer finds it, and the tokenizer takes the
    marks off when it normalises: it looks for special tokens before. What comes out is what
    `split_special_tokens` makes of the text.

    Args:
        held: the control tokens in text and system prompt, as `control_tokens` tells them.

    Raises:
        UsageProblem: a token can't be read as text, or is to stand for an image that is not there.
    """
    spec, system = loaded.spec, loaded.spec.system or ""
    if spec.special_tokens:
        for token in (token for token, is_input in held.items() if is_input):
            cause = "Images go in its place, and prompt.special_tokens has it read as that."
            hint = "mvw infer IMAGE QUESTION --set prompt.special_tokens=false"
            raise _refused(loaded, token, cause, hint)
        return loaded, text
    mark = next(chr(code) for code in _MARKS if chr(code) not in text + system)
    start = re.compile(f"(?={'|'.join(map(re.escape, held))})(.)", re.DOTALL)
    text, system = (start.sub(rf"\1{mark}", part) for part in (text, system))
    tokenizer = _taking_off(mark, loaded.processor.tokenizer)
    written: set[int | None] = set()
    if tokenizer is not None:
        written |= set(tokenizer(f"{system}\n{text}", add_special_tokens=False)["input_ids"])
        written -= {tokenizer.unk_token_id}
    for token, is_input in held.items():
        if tokenizer is None or tokenizer.convert_tokens_to_ids(token) in written:
            again = "mvw infer IMAGE QUESTION --set prompt.special_tokens=true"
            hint = "mvw list profiles" if is_input else again
            raise _refused(loaded, token, "Its tokenizer has no other way to read it.", hint)
    processor = copy.copy(loaded.processor)
    object.__setattr__(processor, "tokenizer", tokenizer)  # some are frozen
    spec = replace(spec, system=system or spec.system)
    return replace(loaded, processor=processor, spec=spec), text


def _taking_off(mark: str, tokenizer: Any) -> Any:
    """Return a copy of a tokenizer that takes a mark off; None where it is not of `tokenizers`.

    A copy, since another thread may be decoding with the tokenizer itself.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return None
    made = _copies.get(tokenizer)
    if made is None:
        made = _copies[tokenizer] = copy.copy(tokenizer)
        made._tokenizer = Tokenizer.from_str(backend.to_str())
    own = [] if backend.normalizer is None else [backend.normalizer]
    made._tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(mark, ""), *own])
    return made


def _refused(loaded: LoadedModel, token: str, cause: str, hint: str) -> UsageProblem:
    message = f"The prompt holds {token}, a control token of {loaded.name}."
    return UsageProblem(message, cause=cause, hint=hint)
