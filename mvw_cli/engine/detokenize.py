"""Streaming detokenisation: token ids in, readable text out, never half a character.

Knows nothing about models. The method is the usual one of a sliding window over the ids: decode
a short tail with and without the new token and emit the difference once it is complete.
"""

from __future__ import annotations

from typing import Any

_INCOMPLETE = "�"


class Detokenizer:
    """The text of one output, grown token by token."""

    def __init__(self, tokenizer: Any | None, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        self._start = 0  # of the window that is decoded again
        self._done = 0  # ids whose text has been emitted
        self.text = ""

    def add(self, token_id: int) -> str:
        """Take one more token; return the text that became readable with it, maybe empty."""
        self._ids.append(token_id)
        return self._emit(final=False)

    def finish(self) -> str:
        """Return what is left, an incomplete character at the very end included."""
        return self._emit(final=True)

    def _emit(self, *, final: bool) -> str:
        if self._tokenizer is None:
            return ""
        known = self._decode(self._ids[self._start : self._done])
        grown = self._decode(self._ids[self._start :])
        if len(grown) <= len(known) or (grown.endswith(_INCOMPLETE) and not final):
            return ""
        piece = grown[len(known) :]
        self._start, self._done = self._done, len(self._ids)
        self.text += piece
        return piece

    def _decode(self, ids: list[int]) -> str:
        assert self._tokenizer is not None
        text = self._tokenizer.decode(
            ids, skip_special_tokens=self._skip, clean_up_tokenization_spaces=False
        )
        return str(text)
