"""A report on the terminal: Rich tables and block pictures; plain aligned text anywhere else.

It draws sections and pictures. What they say is not known here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mvw_cli import console
from mvw_cli.bench.report import blocks
from mvw_cli.bench.report.documents import Report
from mvw_cli.bench.report.pictures import BY_LAYER, pictures
from mvw_cli.bench.report.sections import sections, title
from mvw_cli.render.content import Section, Sentence, Table
from mvw_cli.render.picture import Picture
from mvw_cli.text import one_line, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

STYLES = {"plain": "", "verdict": "bold", "warning": "yellow"}
PALETTE = ["", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00"]
"""Okabe and Ito's colours, which most colour-blind people tell apart; the baseline has none."""
LETTERS = str.maketrans({"×": "x", "µ": "u"})
"""For terminals that have no more than ASCII."""
WIDTH = 100
"""Columns of plain text, as far as its sentences go; tables take what they need."""


def write(report: Report) -> None:
    """Write a report to stdout: drawn on a terminal, plain anywhere else."""
    show(title(report), sections(report), _short(report))


def show(heading: str, parts: Sequence[Section], shown: Sequence[Picture] = ()) -> None:
    """Write sections to stdout, and on a terminal pictures too."""
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    letters = LETTERS if ascii_only else {}
    if not console.is_terminal(sys.stdout):
        console.write(_plain(heading, parts).translate(letters))
        return
    screen = console.out()
    with screen.capture() as captured:
        for part in _drawn(heading, parts):
            screen.print(part)
        for row in _pictures(shown, screen.width, ascii_only=ascii_only):
            screen.print(row)
    console.write(captured.get().translate(letters).rstrip("\n"))


def renderables(report: Report, width: int, *, ascii_only: bool = False) -> list[RenderableType]:
    """Turn a report into what Rich can draw, pictures included."""
    drawn = _drawn(title(report), sections(report))
    return [*drawn, *_pictures(_short(report), width, ascii_only=ascii_only)]


def _short(report: Report) -> list[Picture]:
    return [picture for picture in pictures(report) if picture.name != BY_LAYER]


def _drawn(heading: str, parts: Sequence[Section]) -> list[RenderableType]:
    from rich.text import Text

    drawn: list[RenderableType] = [Text(one_line(heading), "bold")]
    for section in parts:
        drawn += [Text(""), Text(section.title.upper(), "bold cyan"), *draw(section.parts)]
    return drawn


def _pictures(shown: Sequence[Picture], width: int, *, ascii_only: bool) -> list[RenderableType]:
    from rich.text import Text

    drawn: list[RenderableType] = [Text(""), Text("PICTURES", "bold cyan")] if shown else []
    for picture in shown:
        rows = blocks.draw(picture, width, blocks.ASCII if ascii_only else blocks.UNICODE)
        drawn.append(Text(""))
        # Whatever a name holds, a row stays a row.
        drawn += [Text(_flat(row.text), _colour_of(row), no_wrap=True) for row in rows]
    return drawn


def _flat(text: str) -> str:
    return printable(text).replace("\n", " ").replace("\t", " ")


def _colour_of(row: blocks.Row) -> str:
    if row.colour is None:
        return ""
    return PALETTE[row.colour] if row.colour == 0 else PALETTE[1:][(row.colour - 1) % 5]


def draw(parts: Sequence[Table | Sentence]) -> list[RenderableType]:
    """Draw tables and sentences with Rich."""
    from rich.text import Text

    drawn: list[RenderableType] = []
    for part in parts:
        if isinstance(part, Sentence):
            drawn.append(Text(printable(part.text), STYLES[part.kind]))
            continue
        if part.caption:
            drawn.append(Text(f"\n{one_line(part.caption)}", "italic"))
        drawn.append(_table(part))
    return drawn


def _table(table: Table) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Drawn
    from rich.text import Text

    drawn = Drawn(*map(one_line, table.columns), box=SIMPLE_HEAD, header_style="bold",
                  pad_edge=False)  # fmt: skip
    for column in drawn.columns:
        column.overflow = "fold"
    for row in _grouped(table.rows):
        drawn.add_row(*(Text(printable(cell), _colour(cell)) for cell in row))
    return drawn


def _colour(cell: str) -> str:
    """Colour what an interval shows; the words say the same without it."""
    for ending, style in (("faster", "green"), ("slower", "red"), ("shown", "dim"),
                          ("unstable", "yellow"), ("differs", "red")):  # fmt: skip
        if cell.endswith(ending):
            return style
    return ""


def _grouped(rows: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    """Leave a first cell empty where it repeats the one above."""
    above = None
    for first, *rest in rows:
        yield ["" if first == above else first, *rest]
        above = first


def plain(report: Report) -> str:
    """Write a report as plain text: no colours, no boxes, every row whole."""
    return _plain(title(report), sections(report))


def _plain(heading: str, parts: Sequence[Section]) -> str:
    lines = [one_line(heading)]
    for section in parts:
        lines += ["", section.title.upper(), *plain_parts(section)]
    return "\n".join(lines)


def plain_parts(section: Section) -> list[str]:
    """Write tables as aligned columns and sentences as lines."""
    from textwrap import wrap

    lines: list[str] = []
    for part in section.parts:
        if isinstance(part, Sentence):
            lines += wrap(printable(part.text), WIDTH, break_long_words=False)
            continue
        if part.caption:
            lines += ["", one_line(part.caption)]
        lines += _aligned(part)
    return lines


def _aligned(table: Table) -> list[str]:
    # Every cell is written: a line that is grepped out still says what it is about.
    rows = [[_flat(cell) for cell in row] for row in table.rows]
    lines = [table.columns, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.columns))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
