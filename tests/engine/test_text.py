"""Streaming detokenisation never shows half a character and loses nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mvw_cli.engine.sequence import Detokenizer


def _bytes_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte: every character beyond ASCII spans several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZER = _bytes_tokenizer()


@given(st.text(max_size=40).filter(lambda text: "�" not in text))
def test_pieces_are_whole_characters_and_add_up(text: str) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.add(token) for token in TOKENIZER.encode(text)]
    assert all("�" not in piece for piece in pieces)
    assert "".join(pieces) == text
    assert detokenizer.finish() == ""
    assert detokenizer.text == text


def test_a_cut_character_is_shown_at_the_end_only() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    tokens = TOKENIZER.encode("a€")[:-1]
    assert [detokenizer.add(token) for token in tokens] == ["a", "", ""]
    assert detokenizer.finish() == "�"


def test_without_a_tokenizer_there_is_no_text() -> None:
    detokenizer = Detokenizer(None)
    assert detokenizer.add(3) == detokenizer.finish() == detokenizer.text == ""
