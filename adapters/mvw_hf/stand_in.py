"""A stand-in for a tokenizer that can't be had: random weights need none that they were trained on.

What measures time and memory needs the right number of tokens, and ids that the model has. Text is
cut every four characters, the usual rule for English, and no meaning survives. How images are
prepared, and which special tokens there are, is the adapters' matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count, product
from string import ascii_lowercase
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHARACTERS_PER_TOKEN = 4
"""Of English text, by the tokenizers of today's models: about four."""


class StandInTokenizer(PreTrainedTokenizerFast):  # type: ignore[misc]
    """A tokenizer by its ids, and by nothing else."""


def stand_in_tokenizer(
    size: int, special: Mapping[str, int], *, template: str | None = None, **names: str
) -> StandInTokenizer:
    """Make a tokenizer in which every id below `size` is a token, and can be decoded.

    Args:
        size: of the vocabulary.
        special: special tokens with their ids, which may lie beyond `size`.
        template: a chat template.
        names: which of the special tokens are `bos_token`, `eos_token` and so on.
    """
    taken = set(special.values())
    words = dict(zip(_words(), (n for n in range(size) if n not in taken), strict=False))
    # A piece of text is the token of the same letters, or else the first of all.
    model = models.WordLevel(words | dict(special), unk_token=next(iter(words)))
    tokenizer = Tokenizer(model)
    every = Regex(rf"[\s\S]{{1,{CHARACTERS_PER_TOKEN}}}")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(every, "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return StandInTokenizer(
        tokenizer_object=tokenizer,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


def is_stand_in(processor: Any) -> bool:
    """Whether a processor was made with a tokenizer of this module."""
    return isinstance(getattr(processor, "tokenizer", None), StandInTokenizer)


def _words() -> Iterator[str]:
    """Make up words, a blank and three letters or more, without end."""
    for length in count(CHARACTERS_PER_TOKEN - 1):
        for letters in product(ascii_lowercase, repeat=length):
            yield " " + "".join(letters)
