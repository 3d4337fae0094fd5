"""Sections on stdout: Rich tables where somebody watches, plain aligned text anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from mvw_cli import console
from mvw_cli.render.sections import Section, Sentence, Table
from mvw_cli.text import one_line, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

STYLES = {"plain": "", "verdict": "bold", "warning": "yellow"}
ASCII = str.maketrans({"×": "x", "µ": "u", "→": ">", "…": "."})
"""For streams that have no more than ASCII."""
WIDTH = 100
"""Columns of plain text, as far as its sentences go; tables take what they need."""


def show(heading: str, sections: Sequence[Section]) -> None:
    """Write sections to stdout: drawn on a terminal, plain anywhere else."""
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    letters = ASCII if ascii_only else {}
    if not console.is_terminal(sys.stdout):
        console.write(plain(heading, sections).translate(letters))
        return
    screen = console.out()
    with screen.capture() as captured:
        for part in _drawn(heading, sections):
            screen.print(part)
    console.write(captured.get().translate(letters).rstrip("\n"))


def width() -> int:
    """Return how many columns a sentence on stdout may take."""
    return console.out().width if console.is_terminal(sys.stdout) else WIDTH


def _drawn(heading: str, sections: Sequence[Section]) -> Iterator[RenderableType]:
    from rich.text import Text

    yield Text(one_line(heading), "bold")
    for section in sections:
        yield Text("")
        yield Text(one_line(section.title.upper()), "bold cyan")
        for part in section.parts:
            if isinstance(part, Sentence):
                yield Text(printable(part.text), STYLES[part.kind])
                continue
            if part.caption:
                yield Text(f"\n{one_line(part.caption)}", "italic")
            yield _table(part)


def _table(table: Table) -> RenderableType:
    from rich.table import Table as Drawn
    from rich.text import Text

    drawn = Drawn(
        *map(one_line, table.columns), box=None, padding=(0, 2, 0, 0), header_style="bold"
    )
    for column in drawn.columns:
        column.overflow = "fold"
    above = None
    for first, *rest in table.rows:
        # A first cell that repeats the one above is left empty.
        cells = ["" if first == above else first, *rest]
        drawn.add_row(*(Text(printable(cell), _colour(cell)) for cell in cells))
        above = first
    return drawn


def _colour(cell: str) -> str:
    """Colour what an interval shows; the words say the same without it."""
    for ending, style in (("faster", "green"), ("slower", "red"), ("shown", "dim"),
                          ("unstable", "yellow"), ("differs", "red")):  # fmt: skip
        if cell.endswith(ending):
            return style
    return ""


def plain(heading: str, sections: Sequence[Section]) -> str:
    """Write sections as plain text: no colours, no boxes, every row whole."""
    lines = [one_line(heading)]
    for section in sections:
        lines += ["", one_line(section.title.upper())]
        for part in section.parts:
            if isinstance(part, Sentence):
                lines += wrap(printable(part.text), WIDTH, break_long_words=False)
                continue
            if part.caption:
                lines += ["", one_line(part.caption)]
            lines += _aligned(part)
    return "\n".join(lines)


def _aligned(table: Table) -> list[str]:
    # Every cell is written: a line that is grepped out still says what it is about.
    flat = str.maketrans("\n\t", "  ")
    lines = [[printable(cell).translate(flat) for cell in row]
             for row in (table.columns, *table.rows)]  # fmt: skip
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.columns))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
