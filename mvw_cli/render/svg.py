"""A chart as SVG whose colours are CSS variables, so that a dark page has a dark one.

`svg` is for a page, which defines the classes of `style.css`: `.c0` … `.c6`, `.grid`, `.axis`.
`svg_file` is a document of its own. No library is needed; the same chart gives the same text.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from math import log10
from pathlib import Path
from statistics import median

from mvw_cli.errors import MvwError
from mvw_cli.files import replacing
from mvw_cli.render.chart import Chart, Line, Point, Range, decades, ranges, tick_text, ticks
from mvw_cli.text import printable

COLOURS = 7
"""Classes that a page has to define; more arms use them again, with other dashes."""
DASHES = ("", "7 4", "2 3", "9 3 2 3")
MOST_POINTS = 600
MOST_CELLS, SHADES = 120, 20
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 30, 44
_Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""
_LABEL = 13
"""Pixels from one line of labels to the next."""


def colour(place: int) -> str:
    """Name the class of a palette's place; the first is the baseline's alone."""
    return f"c{0 if place == 0 else 1 + (place - 1) % (COLOURS - 1)}"


def dash(place: int) -> str:
    """Return how a line is dashed: neighbours differ in more than their colour."""
    return DASHES[place % len(DASHES)]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The box of the axes, and what they cover."""

    width: int
    height: int
    xs: Range
    ys: Range
    logarithmic: bool = False

    def x(self, value: float) -> float:
        share = (value - self.xs[0]) / (self.xs[1] - self.xs[0])
        return round(_LEFT + share * (self.width - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.ys
        if self.logarithmic:
            low, high, value = (log10(one) for one in (low, high, value))
        share = (value - low) / (high - low)
        return round(self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM), 1)


def svg(chart: Chart, width: int, height: int) -> str:
    """Draw a chart; `width` and `height` are in CSS pixels, at which its text is 12 px."""
    frame = _Frame(width, height, *ranges(chart), chart.logarithmic)
    if chart.heatmap:
        drawn = _heatmap(chart, frame)
    else:
        drawn = [*_axes(chart, frame), *_marks(chart, frame)]
        for place, line in enumerate(chart.lines):
            drawn += _line(line, place, frame)
        drawn += _points(chart, frame)
    label = f"{chart.title}. {chart.caption}"
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{safe(label)}">'
        f"{''.join(drawn)}</svg>"
    )


def _heatmap(chart: Chart, frame: _Frame) -> list[str]:
    """Draw each line as a row of cells, whose opacity is the median of what falls into them."""
    top = max(max(line.ys) for line in chart.lines) or 1.0
    left, right, bottom = _LEFT, frame.width - _RIGHT, frame.height - _BOTTOM
    high = (bottom - _TOP) / len(chart.lines)
    drawn = [*_x_axis(chart, frame)]
    for row, line in enumerate(chart.lines):
        count = min(len(line.xs), MOST_CELLS)
        wide, y = (right - left) / count, round(_TOP + row * high, 1)
        start, shade = 0, None
        for cell in range(count + 1):
            inside = line.ys[cell * len(line.ys) // count : (cell + 1) * len(line.ys) // count]
            level = round(median(inside) / top * SHADES) if inside else None
            if level != shade:  # neighbours of one shade are one
                if shade:
                    drawn.append(
                        f'<rect x="{left + start * wide:.1f}" y="{y}" height="{high - 1:.1f}" '
                        f'width="{(cell - start) * wide:.1f}" fill-opacity="{shade / SHADES:.2f}"/>'
                    )
                start, shade = cell, level
        if high >= _LABEL or row % 2 == 0:
            drawn.append(_text(left - 7, y + high / 2 + 4, line.name.removeprefix("layer "), "end"))
    drawn.append(_text(4, 14, "layer", "start"))
    return drawn


def safe(text: str) -> str:
    """Escape text for HTML and SVG, in elements and in attributes."""
    return escape(printable(text), quote=True)


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{more}>{safe(text)}</text>'


def _axes(chart: Chart, frame: _Frame) -> list[str]:
    left, right = _LEFT, frame.width - _RIGHT
    ys = decades(*frame.ys, most=6) if frame.logarithmic else ticks(*frame.ys, most=5)
    drawn = []
    for value in ys:
        y = frame.y(value)
        drawn.append(f'<path class="grid" d="M{left} {y}H{right}"/>')
        named = f"{value:g}" if frame.logarithmic else tick_text(value, ys)
        drawn.append(_text(left - 7, y + 4, named, "end"))
    drawn.append(_text(4, 14, f"{chart.y_label}, {chart.unit}", "start"))
    return [*drawn, *_x_axis(chart, frame)]


def _x_axis(chart: Chart, frame: _Frame) -> list[str]:
    left, right, bottom = _LEFT, frame.width - _RIGHT, frame.height - _BOTTOM
    xs = ticks(*frame.xs, most=max(3, frame.width // 90))
    named = {value: tick_text(value, xs) for value in xs}
    if chart.x_names:
        named = {float(place): name for place, name in enumerate(chart.x_names)}
    drawn = []
    for value, name in named.items():
        x = frame.x(value)
        drawn.append(f'<path class="axis" d="M{x} {bottom}v4"/>')
        drawn.append(_text(x, bottom + 17, name))
    drawn.append(f'<path class="axis" d="M{left} {bottom}H{right}"/>')
    drawn.append(_text((left + right) / 2, frame.height - 8, chart.x_label))
    return drawn


def _marks(chart: Chart, frame: _Frame) -> list[str]:
    """Mark withdrawals; labels that would lie over one another take lines of their own."""
    drawn: list[str] = []
    ends: list[float] = []
    marked: dict[int, Line] = {}
    for line in chart.lines:
        if line.withdrawn_after is not None:
            marked.setdefault(line.withdrawn_after, line)
    for _, line in sorted(marked.items()):
        if not frame.xs[0] <= line.withdrawn_x <= frame.xs[1]:
            continue
        x = frame.x(line.withdrawn_x)
        text = f"{line.withdrawn_after}"
        row = next((i for i, end in enumerate(ends) if end < x), len(ends))
        ends[row : row + 1] = [x + 12 + 7 * len(text)]
        kind = colour(line.colour)
        top, bottom = _TOP, frame.height - _BOTTOM
        drawn.append(f'<path class="mark {kind}" d="M{x} {top}V{bottom}"/>')
        drawn.append(
            _text(x + 4, top + 10 + _LABEL * row, f"▾{text}", "start", f' class="t{kind[1:]}"')
        )
    return drawn


def _line(line: Line, place: int, frame: _Frame) -> list[str]:
    kind, dashes = colour(line.colour), dash(place)
    style = f' stroke-dasharray="{dashes}"' if dashes else ""
    drawn = []
    if line.faint is not None:
        drawn.append(
            f'<path class="line faint-line {kind}" d="{_path(line.xs, line.faint, frame)}"/>'
        )
    drawn.append(f'<path class="line {kind}"{style} d="{_path(line.xs, line.ys, frame)}"/>')
    if len(line.xs) == 1:
        drawn.append(f'<circle class="dot {kind}" cx="{frame.x(line.xs[0])}" '
                     f'cy="{frame.y(line.ys[0])}" r="3"/>')  # fmt: skip
    return drawn


def _path(xs: list[float], ys: list[float], frame: _Frame) -> str:
    # Of neighbours too close to be told apart, the extremes are kept: no spike is lost.
    size = max(1, -(-2 * len(xs) // MOST_POINTS))
    kept = []
    for start in range(0, len(xs), size):
        places = range(start, min(start + size, len(xs)))
        low, high = min(places, key=ys.__getitem__), max(places, key=ys.__getitem__)
        kept += sorted({low, high})
    return "M" + "L".join(f"{frame.x(xs[i])} {frame.y(ys[i])}" for i in kept)


def _points(chart: Chart, frame: _Frame) -> list[str]:
    drawn = []
    if chart.points and not chart.lines:
        x = frame.x(1.0)
        drawn.append(f'<path class="axis faint" d="M{x} {_TOP}V{frame.height - _BOTTOM}"/>')
    if chart.reference is not None:
        name, value = chart.reference
        y = frame.y(value)
        drawn.append(f'<path class="axis faint" d="M{_LEFT} {y}H{frame.width - _RIGHT}"/>')
        drawn.append(_text(frame.width - _RIGHT, y - 5, name, "end"))
    taken = [(frame.x(p.x) - 5, frame.y(p.y) - 5, frame.x(p.x) + 5, frame.y(p.y) + 5)
             for p in chart.points]  # fmt: skip
    for point in sorted(chart.points, key=lambda point: point.x):
        drawn += _point(point, frame)
        drawn.append(_label(point, frame, taken))
    return drawn


def _label(point: Point, frame: _Frame, taken: list[_Box]) -> str:
    """Name a point where its name lies over nothing, as near as can be."""
    x, y, width = frame.x(point.x), frame.y(point.y), 8 * len(point.name)
    room = (_LEFT, _TOP - 8, frame.width - 4, frame.height - _BOTTOM)
    places = [(x + side, y + down, anchor) for down in (-9, 18, -24, 33, -39, 48)
              for side, anchor in ((9, "start"), (-9, "end"))]  # fmt: skip

    def box(place: tuple[float, float, str]) -> _Box:
        left = place[0] if place[2] == "start" else place[0] - width
        return left, place[1] - 11, left + width, place[1] + 3

    def cost(place: tuple[float, float, str]) -> int:
        mine = box(place)
        inside = room[0] <= mine[0] and room[1] <= mine[1] and mine[2] <= room[2]
        return 10 * (not inside) + sum(_overlap(mine, other) for other in taken)

    best = min(places, key=cost)  # the first of those that cost as little
    taken.append(box(best))
    return _text(*best[:2], point.name, best[2], f' class="t{colour(point.colour)[1:]}"')


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _point(point: Point, frame: _Frame) -> list[str]:
    kind, x, y = colour(point.colour), frame.x(point.x), frame.y(point.y)
    drawn = []
    if point.x_interval is not None:
        low, high = (frame.x(value) for value in point.x_interval)
        drawn.append(f'<path class="whisker {kind}" d="M{low} {y}H{high}"/>')
    if point.y_interval is not None:
        low, high = (frame.y(value) for value in point.y_interval)
        drawn.append(f'<path class="whisker {kind}" d="M{x} {low}V{high}"/>')
    return [*drawn, f'<circle class="dot {kind}" cx="{x}" cy="{y}" r="5"/>']


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
        found.append(Entry(name, colour(line.colour), dash(place), len(line.xs) == 1))
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
        inner = svg(chart, width, height).replace(
            "<svg ", f'<svg y="{top + _TITLE}" width="{width}" height="{height}" ', 1
        )
        drawn.append(f'<text class="title" x="4" y="{top + 19}">{safe(chart.title)}</text>{inner}')
        top += _TITLE + height
        for entry in _legend_of_file(chart):
            y, dashes = top + 6, f' stroke-dasharray="{entry.dashes}"' if entry.dashes else ""
            drawn.append(
                f'<circle class="dot {entry.kind}" cx="66" cy="{y}" r="3"/>'
                if entry.single
                else f'<path class="line {entry.kind}"{dashes} d="M52 {y}h28"/>'
            )
            drawn.append(f'<text x="88" y="{y + 4}">{safe(entry.name)}</text>')
            top += _ROW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" '
        f'width="{width}" height="{top}"><style>{_style()}</style>'
        f'<rect class="page" width="{width}" height="{top}"/>{"".join(drawn)}</svg>\n'
    )


def _legend_of_file(chart: Chart) -> list[Entry]:
    found = legend(chart)
    # The title says what an only line is.
    return [] if len(found) == 1 and chart.lines[0].withdrawn_after is None else found


def _style() -> str:
    sheet = files("mvw_cli.render").joinpath("templates/style.css").read_text("utf-8")
    chosen = [line for line in sheet.splitlines() if line.startswith(_STYLED)]
    return "".join(
        [*chosen, "svg rect.page{fill:var(--bg)}svg text.title{font-weight:600;fill:var(--ink)}"]
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
