"""A picture as inline SVG whose colours are CSS variables, so that a dark page has a dark one.

The page defines the classes `.c0` … `.c6`, `.grid`, `.axis`. It does not know reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import log10
from statistics import median

from mvw_cli.render.axis import Range, decades, ranges, tick_text, ticks
from mvw_cli.render.picture import Line, Picture, Point
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
    """Say how a line is dashed: neighbours differ in more than their colour."""
    return DASHES[place % len(DASHES)]


@dataclass(frozen=True, slots=True)
class _Frame:
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


def svg(picture: Picture, width: int, height: int) -> str:
    """Draw a picture; `width` and `height` are in CSS pixels, at which its text is 12 px."""
    frame = _Frame(width, height, *ranges(picture), picture.logarithmic)
    drawn = (
        _grid(picture, frame)
        if picture.as_grid
        else [
            *_axes(picture, frame),
            *_marks(picture, frame),
            *(
                shape
                for place, line in enumerate(picture.lines)
                for shape in _line(line, place, frame)
            ),
            *_points(picture, frame),
        ]
    )
    label = f"{picture.title}. {picture.says}"
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{safe(label)}">'
        f"{''.join(drawn)}</svg>"
    )


def _grid(picture: Picture, frame: _Frame) -> list[str]:
    """Draw each line as a row of cells, whose opacity is the median of what falls into them."""
    top = max(max(line.ys) for line in picture.lines) or 1.0
    left, right, bottom = _LEFT, frame.width - _RIGHT, frame.height - _BOTTOM
    high = (bottom - _TOP) / len(picture.lines)
    drawn = [*_x_axis(picture, frame)]
    for row, line in enumerate(picture.lines):
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


def _axes(picture: Picture, frame: _Frame) -> list[str]:
    left, right = _LEFT, frame.width - _RIGHT
    ys = decades(*frame.ys, most=6) if frame.logarithmic else ticks(*frame.ys, most=5)
    drawn = []
    for value in ys:
        y = frame.y(value)
        drawn.append(f'<path class="grid" d="M{left} {y}H{right}"/>')
        named = f"{value:g}" if frame.logarithmic else tick_text(value, ys)
        drawn.append(_text(left - 7, y + 4, named, "end"))
    drawn.append(_text(4, 14, f"{picture.y_label}, {picture.unit}", "start"))
    return [*drawn, *_x_axis(picture, frame)]


def _x_axis(picture: Picture, frame: _Frame) -> list[str]:
    left, right, bottom = _LEFT, frame.width - _RIGHT, frame.height - _BOTTOM
    xs = ticks(*frame.xs, most=max(3, frame.width // 90))
    drawn = []
    for value in xs:
        x = frame.x(value)
        drawn.append(f'<path class="axis" d="M{x} {bottom}v4"/>')
        drawn.append(_text(x, bottom + 17, tick_text(value, xs)))
    drawn.append(f'<path class="axis" d="M{left} {bottom}H{right}"/>')
    drawn.append(_text((left + right) / 2, frame.height - 8, picture.x_label))
    return drawn


def _marks(picture: Picture, frame: _Frame) -> list[str]:
    """Mark withdrawals; labels that would lie over one another take lines of their own."""
    drawn: list[str] = []
    ends: list[float] = []
    marked: dict[int, Line] = {}
    for line in picture.lines:
        if line.withdrawn_after is not None:
            marked.setdefault(line.withdrawn_after, line)
    for _, line in sorted(marked.items()):
        if not frame.xs[0] <= line.mark <= frame.xs[1]:
            continue
        x = frame.x(line.mark)
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
    if line.behind is not None:
        drawn.append(f'<path class="line behind {kind}" d="{_path(line.xs, line.behind, frame)}"/>')
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


def _points(picture: Picture, frame: _Frame) -> list[str]:
    drawn = []
    if picture.points:
        x = frame.x(1.0)
        drawn.append(f'<path class="axis faint" d="M{x} {_TOP}V{frame.height - _BOTTOM}"/>')
    if picture.level is not None:
        name, value = picture.level
        y = frame.y(value)
        drawn.append(f'<path class="axis faint" d="M{_LEFT} {y}H{frame.width - _RIGHT}"/>')
        drawn.append(_text(frame.width - _RIGHT, y - 5, name, "end"))
    taken = [(frame.x(p.x) - 5, frame.y(p.y) - 5, frame.x(p.x) + 5, frame.y(p.y) + 5)
             for p in picture.points]  # fmt: skip
    for point in sorted(picture.points, key=lambda point: point.x):
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
