"""Sections on stdout: coloured and folded where somebody watches, every row whole anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table as Drawn
from rich.text import Text

from mvw_cli import console
from mvw_cli.render.sections import Section, Table, split_cell
from mvw_cli.text import one_line, printable

STYLES = {
    "plain": "", "verdict": "bold", "warning": "yellow",
    "faster": "green", "slower": "red", "differs": "red",
    "no difference shown": "dim",
}  # fmt: skip
"""Of sentences by their kind, of cells by what they show; the words say the same without them."""
ASCII = str.maketrans({"×": "x", "µ": "u", "→": ">", "…": "."})
"""For streams that have no more than ASCII."""
WIDTH = 100
"""Columns of plain text, as far as its sentences go; tables take what they need."""
_FLAT = str.maketrans("\n\t", "  ")


def show(heading: str, sections: Sequence[Section]) -> None:
    """Write sections to stdout."""
    watched = console.is_terminal(sys.stdout)
    text = drawn(console.out(), heading, sections) if watched else plain(heading, sections)
    utf8 = (sys.stdout.encoding or "").lower().startswith("utf")
    console.write(text if utf8 else text.translate(ASCII), drawn=True)


def width() -> int:
    """Return how many columns a sentence on stdout may take."""
    return console.out().width if console.is_terminal(sys.stdout) else WIDTH


def height(sections: Sequence[Section], columns: int) -> int:
    """Count the lines that sections take below a heading, on a screen of so many columns."""
    screen = Console(file=StringIO(), width=columns, color_system=None)
    return len(drawn(screen, "heading", sections).splitlines())


def plain(heading: str, sections: Sequence[Section]) -> str:
    """Write sections as plain text: no colours, and lines as long as their tables."""
    sheet = Console(file=StringIO(), width=1 << 16, color_system=None)
    return drawn(sheet, heading, sections, WIDTH)


def drawn(
    screen: Console, heading: str, sections: Sequence[Section], columns: int | None = None
) -> str:
    """Return what a screen would show, with sentences that take at most so many columns."""
    with screen.capture() as captured:
        screen.print(Text(one_line(heading), "bold"))
        for section in sections:
            screen.print(Text(f"\n{one_line(section.title.upper())}", "bold cyan"))
            for part in section.parts:
                if not isinstance(part, Table):
                    text = Text(printable(part.text), STYLES[part.kind], overflow="ignore")
                    screen.print(text, width=columns, crop=False)
                    continue
                if part.caption:
                    screen.print(Text(f"\n{one_line(part.caption)}", "italic"))
                screen.print(_table(part))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _table(table: Table) -> Drawn:
    made = Drawn(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in table.columns:
        made.add_column(Text(one_line(column)), overflow="fold")
    # Every cell is written: a line that is grepped out still says what it is about.
    for row in table.rows:
        cells = (printable(cell).translate(_FLAT) for cell in row)
        made.add_row(*(Text(cell, STYLES.get(split_cell(cell)[2], "")) for cell in cells))
    return made
