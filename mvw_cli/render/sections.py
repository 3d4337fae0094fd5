"""What a report is made of once it is put into words: sections of tables and sentences.

Every format draws these and nothing else, so that none of them says more than another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

T = TypeVar("T")
_ENDINGS = ("no difference shown", "faster", "slower", "differs")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, and how much it matters."""

    text: str
    kind: Literal["plain", "verdict", "warning"] = "plain"


@dataclass(frozen=True, slots=True)
class Table:
    """A table; its first column names what the row is about, the others hold figures."""

    columns: list[str]
    rows: list[list[str]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report; without parts it is left out."""

    name: str
    """For links and tests: `speed`."""
    title: str
    parts: list[Table | Sentence] = field(default_factory=list)


def table_of(
    columns: Mapping[str, Callable[[T], str]], items: Iterable[T], caption: str = ""
) -> Table:
    """Make a table with a row for each item; a column is a heading and what writes its cell."""
    rows = [[write(item) for write in columns.values()] for item in items]
    return Table(list(columns), rows, caption)


def split_cell(cell: str) -> tuple[str, str, str]:
    """Take a cell apart: a figure, then its share, or what its interval shows."""
    for ending in _ENDINGS:
        if cell.endswith(ending):
            return cell.removesuffix(ending), "", ending
    figure, _, share = cell.partition("  ")
    return figure, share, ""
