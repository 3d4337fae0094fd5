"""When two answers are the same: the rule by which an answer is judged right."""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = re.compile(r"[+-]?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?")


def answers_match(one: str, other: str) -> bool:
    """Whether two answers are the same: the one rule by which an answer is judged right.

    Equal once case, runs of spaces and a final full stop are left out of account; numbers equal as
    numbers: `3`, `3.0` and `+3` are one, `1,000` is a thousand. Nothing is guessed beyond that:
    `three` is not `3`, and a sentence that holds the right word is not the right answer.
    """
    left, right = _plain(one), _plain(other)
    if left == right:
        return True
    if _NUMBER.fullmatch(left) and _NUMBER.fullmatch(right):
        return _number(left) == _number(right)
    return False


def _plain(text: str) -> str:
    words = " ".join(text.split()).casefold()
    return words.removesuffix(".").rstrip()


def _number(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))
