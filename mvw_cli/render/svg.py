"""A chart as SVG whose colours are CSS variables, so that a dark page has a dark one.

`svg` is for a page, which defines the classes of `chart.css`: `.c0` … `.c6`, `.grid`, `.axis`.
`svg_file` is a document of its own. The same chart gives the same text.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path

from markupsafe import Markup

from mvw_cli.errors import MvwError
from mvw_cli.files import replacing
from mvw_cli.render.chart import Chart, Range, decades, ranges, ticks
from mvw_cli.render.jinja import rendered, resource

COLOURS = 7
"""Classes that a page has to define; more arms use them again, with other dashes."""
DASHES = ("", "7 4", "2 3", "9 3 2 3")


def palette(place: int) -> int:
    """Return the number of a place's class; the first is the baseline's alone."""
    return 0 if place == 0 else 1 + (place - 1) % (COLOURS - 1)


def dash(place: int) -> str:
    """Return how a line is dashed: neighbours differ in more than their colour."""
    return DASHES[place % len(DASHES)]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The box of the axes in pixels, and what they cover."""

    width: int
    height: int
    xs: Range
    ys: Range
    logarithmic: bool
    left: int = 52
    top: int = 30

    @property
    def right(self) -> int:
        return self.width - 14

    @property
    def bottom(self) -> int:
        return self.height - 44

    def x(self, value: float) -> float:
        share = (value - self.xs[0]) / (self.xs[1] - self.xs[0])
        return round(self.left + share * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        low, high = self.ys
        if self.logarithmic:
            low, high, value = (log10(one) for one in (low, high, value))
        share = (value - low) / (high - low)
        return round(self.bottom - share * (self.bottom - self.top), 1)

    def path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        return "M" + "L".join(f"{self.x(x)} {self.y(y)}" for x, y in zip(xs, ys, strict=True))


def svg(
    chart: Chart, width: int, height: int, attributes: Mapping[str, object] | None = None
) -> Markup:
    """Draw a chart.

    Args:
        width, height: in CSS pixels, at which its text is 12 px.
        attributes: of the element, for the page or file that it is a part of.
    """
    frame = _Frame(width, height, *ranges(chart), chart.logarithmic)
    xs = ticks(*frame.xs, most=max(3, width // 90))
    ys = decades(*frame.ys, most=6) if chart.logarithmic else ticks(*frame.ys, most=5)
    written = rendered(
        "mvw_cli.render",
        "chart.svg.j2",
        attributes=attributes or {},
        chart=chart,
        frame=frame,
        palette=palette,
        dash=dash,
        x_ticks=enumerate(chart.x_names) if chart.x_names else [(x, f"{x:,g}") for x in xs],
        y_ticks=[(y, f"{y:,g}") for y in ys],
    )
    return Markup("\n").join(Markup(line) for line in written.splitlines() if line)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a legend."""

    name: str
    kind: str
    """CSS classes of its stroke."""
    dashes: str = ""
    dot: bool = False
    """A point, or a line of only one."""


def legend(chart: Chart) -> list[Entry]:
    """Name the lines of a chart, or its points where it has no lines."""
    found = []
    for place, line in enumerate(chart.lines):
        mark = f" (▾ withdrawn after {line.withdrawn_after})"
        name = line.name + (mark if line.withdrawn_after is not None else "")
        found.append(Entry(name, f"c{palette(line.colour)}", dash(place), len(line.xs) == 1))
    if chart.faint_label and any(line.faint for line in chart.lines):
        found.append(Entry(chart.faint_label, "faint-line c0"))
    if not chart.lines:
        found += [Entry(one.name, f"c{palette(one.colour)}", dot=True) for one in chart.points]
    return found


WIDTH, HEIGHT = 760, 380
_TITLE, _ROW = 30, 20


def svg_file(*charts: Chart, width: int = WIDTH, height: int = HEIGHT) -> str:
    """Draw charts below one another as a whole SVG document.

    Args:
        width, height: of the box of each chart's axes, in CSS pixels.
    """
    drawn, top = [], 0
    for chart in charts:
        entries = legend(chart)
        if len(entries) == 1 and chart.lines[0].withdrawn_after is None:
            entries = []  # the title says what an only line is
        below = top + _TITLE + height
        legends = [(below + 6 + _ROW * row, entry) for row, entry in enumerate(entries)]
        size = {"y": top + _TITLE, "width": width, "height": height}
        drawn.append((top + 19, chart.title, svg(chart, width, height, size), legends))
        top = below + _ROW * len(entries)
    style = resource("mvw_cli.render", "chart.css").replace("\n", "")
    return rendered(
        "mvw_cli.render", "file.svg.j2", charts=drawn, style=style, width=width, height=top
    )


def write_charts(charts: Mapping[Path, Chart]) -> list[Path]:
    """Write each chart to its file, as SVG.

    Raises:
        MvwError: a file can't be written.
    """
    for path, chart in charts.items():
        try:
            with replacing(Path(os.path.realpath(path))) as file:
                file.write(svg_file(chart).encode())
        except OSError as error:
            raise MvwError(
                f"Cannot write {path}",
                cause=error.strerror or str(error),
                hint=f"ls -ld {shlex.quote(str(path.parent))}",
            ) from None
    return list(charts)
