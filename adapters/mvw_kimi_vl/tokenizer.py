"""Kimi-VL's tokenizer from `tiktoken.model`: byte pairs by rank, as a tokenizer of transformers.

The file lists one token a line, in base64, with its rank. A merge of two tokens has the rank of
what it makes, which is how tiktoken merges. Pattern and special tokens are those of the
checkpoint's `tokenization_moonshot.py` and `tokenizer_config.json`; that code is not run.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Container
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = (rf"[\p{{{kind}}}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]" for kind in ("Lu", "Ll"))
_UPPER = _UPPER.replace(r"\p{Lu}", r"\p{Lu}\p{Lt}")
PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""How text is cut before byte pairs are merged: the pattern of Moonshot's tokenizers."""

# The format in which Kimi-VL was trained, for checkpoints that bring no template of their own.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>' }}{% endif %}"
    "{{ '<|im_' + message['role'] + '|>' + message['role'] + '<|im_middle|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<|media_start|>image<|media_content|><|media_pad|><|media_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}"
)

OPENS = {"<|media_start|>": "<|media_begin|>"}
"""What Kimi-K2.5 calls a token of Kimi-VL's, of the same id."""
# That of Kimi-K2.5: no system prompt of its own, and the thinking is begun.
NEWER_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_' + message['role'] + '|>' + message['role'] + '<|im_middle|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<|media_begin|>image<|media_content|><|media_pad|><|media_end|>\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|><think>' }}{% endif %}"
)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a checkpoint folder.

    Raises:
        OSError: a file is missing.
        ValueError: `tiktoken.model` or `tokenizer_config.json` is malformed.
    """
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = config.get("added_tokens_decoder", {})
    special = {str(token["content"]): int(number) for number, token in added.items()}
    plain = {str(one["content"]) for one in added.values() if not one.get("special", True)}
    template = folder / "chat_template.jinja"
    written = template.read_text(encoding="utf-8") if template.exists() else None
    return build_tokenizer(
        read_ranks(folder / "tiktoken.model"),
        special,
        template=written or config.get("chat_template") or TEMPLATE,
        plain=plain,
        names={
            key: config[key] if isinstance(config[key], str) else config[key]["content"]
            for key in ("bos_token", "eos_token", "pad_token", "unk_token")
            if config.get(key)
        },
    )


def read_ranks(file: Path) -> dict[bytes, int]:
    """Read tokens and their ranks.

    Raises:
        OSError: there is no such file.
        ValueError: a line is not a token in base64 and a number.
    """
    lines = (line.split() for line in file.read_bytes().splitlines() if line.strip())
    return {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}


def build_tokenizer(
    ranks: dict[bytes, int],
    special: dict[str, int],
    *,
    template: str,
    names: dict[str, str],
    plain: Container[str] = (),
) -> PreTrainedTokenizerFast:
    """Build the tokenizer; special tokens keep the ids that they are given.

    Args:
        plain: those of them that are text when decoded.
    """
    letters = bytes_to_unicode()

    def shown(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocabulary = {shown(token): rank for token, rank in ranks.items()}
    vocabulary |= special
    merges = [(shown(left), shown(right)) for left, right in _merges(ranks)]
    tokenizer = Tokenizer(BPE(vocabulary, merges, fuse_unk=False, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    ordered = sorted(special, key=special.__getitem__)
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False) for name in ordered if name not in plain]
    )
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in ordered if name in plain])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        **names,
    )


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """List the pairs of tokens that make up a token, in the order in which tiktoken merges."""
    pairs = [
        (rank, ranks[token[:cut]], ranks[token[cut:]], token[:cut], token[cut:])
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    return [(left, right) for _, _, _, left, right in sorted(pairs)]
