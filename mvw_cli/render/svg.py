"""A chart as SVG whose colours are CSS variables, so that a dark page has a dark one.

`svg` is for a page, which defines the classes of `style.css`: `.c0` … `.c6`, `.grid`, `.axis`.
`svg_file` is a document of its own. The same chart gives the same text.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import log10
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from mvw_cli.errors import MvwError
from mvw_cli.files import replacing
from mvw_cli.render.chart import Chart, Line, Point, Range, decades, ranges, tick_text, ticks
from mvw_cli.render.jinja import rendered, resource

COLOURS = 7
"""Classes that a page has to define; more arms use them again, with other dashes."""
DASHES = ("", "7 4", "2 3", "9 3 2 3")
MOST_POINTS = 600
MOST_CELLS, SHADES = 120, 20
_Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""
_Label = tuple[float, float, str]
"""Where a text stands, and which of its ends."""
_LABEL = 13
"""Pixels from one line of labels to the next."""


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


def svg(
    chart: Chart, width: int, height: int, attributes: Mapping[str, object] | None = None
) -> Markup:
    """Draw a chart.

    Args:
        width, height: in CSS pixels, at which its text is 12 px.
        attributes: of the element, for the page or file that it is a part of.
    """
    frame = _Frame(width, height, *ranges(chart), chart.logarithmic)
    curves = [] if chart.heatmap else chart.lines
    written = rendered(
        "mvw_cli.render",
        "chart.svg.j2",
        attributes=attributes or {},
        chart=chart,
        frame=frame,
        palette=palette,
        dash=dash,
        path=lambda xs, ys: _path(xs, ys, frame),
        x_ticks=_x_ticks(chart, frame),
        y_ticks=[] if chart.heatmap else _y_ticks(frame),
        rows=list(_rows(chart, frame)) if chart.heatmap else [],
        lines=curves,
        marks=list(_marks(curves, frame)),
        points=_labelled(chart.points, frame),
    )
    return Markup("\n").join(Markup(line) for line in written.splitlines() if line)


def _x_ticks(chart: Chart, frame: _Frame) -> list[tuple[float, str]]:
    if chart.x_names:
        return [(frame.x(place), name) for place, name in enumerate(chart.x_names)]
    values = ticks(*frame.xs, most=max(3, frame.width // 90))
    return [(frame.x(value), tick_text(value, values)) for value in values]


def _y_ticks(frame: _Frame) -> list[tuple[float, str]]:
    if frame.logarithmic:
        return [(frame.y(value), f"{value:g}") for value in decades(*frame.ys, most=6)]
    values = ticks(*frame.ys, most=5)
    return [(frame.y(value), tick_text(value, values)) for value in values]


def _rows(chart: Chart, frame: _Frame) -> Iterator[dict[str, Any]]:
    """Make each line a row of cells, whose opacity is the median of what falls into them."""
    largest = max(max(line.ys) for line in chart.lines) or 1.0
    high = (frame.bottom - frame.top) / len(chart.lines)
    for row, line in enumerate(chart.lines):
        y, named = round(frame.top + row * high, 1), high >= _LABEL or row % 2 == 0
        yield {
            "y": y,
            "height": f"{high - 1:.1f}",
            "middle": y + high / 2 + 4,
            "name": line.name.removeprefix("layer ") if named else "",
            "cells": list(_cells(line.ys, largest, frame)),
        }


def _cells(ys: list[float], largest: float, frame: _Frame) -> Iterator[dict[str, str]]:
    count = min(len(ys), MOST_CELLS)
    wide = (frame.right - frame.left) / count
    start, shade = 0, None
    for cell in range(count + 1):
        inside = ys[cell * len(ys) // count : (cell + 1) * len(ys) // count]
        level = round(median(inside) / largest * SHADES) if inside else None
        if level == shade:  # neighbours of one shade are one
            continue
        if shade:
            yield {
                "x": f"{frame.left + start * wide:.1f}",
                "width": f"{(cell - start) * wide:.1f}",
                "opacity": f"{shade / SHADES:.2f}",
            }
        start, shade = cell, level


def _marks(lines: list[Line], frame: _Frame) -> Iterator[dict[str, Any]]:
    """Mark withdrawals; labels that would lie over one another take lines of their own."""
    ends: list[float] = []
    marked: dict[int, Line] = {}
    for line in lines:
        if line.withdrawn_after is not None:
            marked.setdefault(line.withdrawn_after, line)
    for after, line in sorted(marked.items()):
        if not frame.xs[0] <= line.withdrawn_x <= frame.xs[1]:
            continue
        x = frame.x(line.withdrawn_x)
        row = next((i for i, end in enumerate(ends) if end < x), len(ends))
        ends[row : row + 1] = [x + 12 + 7 * len(str(after))]
        yield {"x": x, "y": frame.top + 10 + _LABEL * row, "after": after, "colour": line.colour}


def _path(xs: list[float], ys: list[float], frame: _Frame) -> str:
    # Of neighbours too close to be told apart, the extremes are kept: no spike is lost.
    size = max(1, -(-2 * len(xs) // MOST_POINTS))
    kept = []
    for start in range(0, len(xs), size):
        places = range(start, min(start + size, len(xs)))
        low, high = min(places, key=ys.__getitem__), max(places, key=ys.__getitem__)
        kept += sorted({low, high})
    return "M" + "L".join(f"{frame.x(xs[i])} {frame.y(ys[i])}" for i in kept)


def _labelled(points: list[Point], frame: _Frame) -> list[tuple[Point, _Label]]:
    taken = [(frame.x(p.x) - 5, frame.y(p.y) - 5, frame.x(p.x) + 5, frame.y(p.y) + 5)
             for p in points]  # fmt: skip
    return [(one, _label(one, frame, taken)) for one in sorted(points, key=lambda one: one.x)]


def _label(point: Point, frame: _Frame, taken: list[_Box]) -> _Label:
    """Name a point where its name lies over nothing, as near as can be."""
    x, y, width = frame.x(point.x), frame.y(point.y), 8 * len(point.name)
    places = [(x + side, y + down, anchor) for down in (-9, 18, -24, 33, -39, 48)
              for side, anchor in ((9, "start"), (-9, "end"))]  # fmt: skip

    def box(place: _Label) -> _Box:
        left = place[0] if place[2] == "start" else place[0] - width
        return left, place[1] - 11, left + width, place[1] + 3

    def cost(place: _Label) -> int:
        left, top, right, bottom = mine = box(place)
        inside = frame.left <= left and frame.top - 8 <= top
        inside = inside and right <= frame.width - 4 and bottom <= frame.bottom
        return 10 * (not inside) + sum(_overlap(mine, other) for other in taken)

    best = min(places, key=cost)  # the first of those that cost as little
    taken.append(box(best))
    return best


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a legend."""

    name: str
    kind: str
    """CSS classes of its stroke."""
    dashes: str = ""
    single: bool = False
    """A line of one point, which is drawn as a dot."""


def legend(chart: Chart) -> list[Entry]:
    """Name the lines of a chart; those of a heatmap are named at its rows."""
    if chart.heatmap:
        return []
    found = []
    for place, line in enumerate(chart.lines):
        mark = f" (▾ withdrawn after {line.withdrawn_after})"
        name = line.name + (mark if line.withdrawn_after is not None else "")
        found.append(Entry(name, f"c{palette(line.colour)}", dash(place), len(line.xs) == 1))
    if chart.faint_label and any(line.faint for line in chart.lines):
        found.append(Entry(chart.faint_label, "faint-line c0"))
    return found


WIDTH, HEIGHT = 760, 380
_TITLE, _ROW = 30, 20
_STYLED = (":root", "@media (prefers", "svg text", "svg rect", ".grid", ".line", ".mark",
           "path.", "circle.")  # fmt: skip


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
        inner = svg(chart, width, height, size)
        drawn.append((top + 19, chart.title, inner, legends))
        top = below + _ROW * len(entries)
    sheet = resource("mvw_cli.render", "style.css").splitlines()
    style = Markup("").join(line for line in sheet if line.startswith(_STYLED))
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
