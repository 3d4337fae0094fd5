"""What a chart is made of: lines with their marks, points with their intervals, and two axes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """A curve, and the moment of the withdrawal on it."""

    name: str
    colour: int
    """Place in a palette; 0 is the baseline's."""
    xs: list[float]
    ys: list[float]
    faint: list[float] | None = None
    """A second curve at the same places, drawn more faintly."""
    withdrawn_after: int | None = None
    withdrawn_x: float = 0.0
    """Where that is on the x axis."""


@dataclass(frozen=True, slots=True)
class Point:
    """A place with its 95 % intervals."""

    name: str
    """Stands in the legend, or beside the point where there are lines."""
    colour: int
    x: float
    y: float
    x_interval: Range | None = None
    y_interval: Range | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart. Both axes carry numbers; that of the curves' y starts at 0 or is logarithmic."""

    name: str
    """As a file would be called: `time-per-token-batch-8`."""
    title: str
    x_label: str
    y_label: str
    unit: str
    """Of y."""
    caption: str
    """A sentence on what is to be seen, also for those who can't see it."""
    lines: list[Line] = field(default_factory=list)
    faint_label: str = ""
    """What the faint curves are."""
    points: list[Point] = field(default_factory=list)
    reference: tuple[str, float] | None = None
    """A name and the height of a line across the chart."""
    logarithmic: bool = False
    """Whether equal steps of y are equal factors; there are curves then, all above 0."""
    x_names: list[str] | None = None
    """What stands at 0, 1, … on the x axis, instead of numbers."""


_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_ROOM = 0.06
"""Part of a range that is left free beside points."""


def ranges(chart: Chart) -> tuple[Range, Range]:
    """Return what x and y cover: curves from 0 on, points with some room around their intervals.

    A logarithmic y covers whole powers of ten.
    """
    xs = [x for line in chart.lines for x in line.xs]
    ys = [y for line in chart.lines for y in (*line.ys, *(line.faint or []))]
    for point in chart.points:
        xs += [point.x, *(point.x_interval or ())]
        ys += [point.y, *(point.y_interval or ())]
    if chart.reference is not None:
        ys.append(chart.reference[1])
    if not chart.lines:
        return _with_room(min(1.0, *xs), max(1.0, *xs)), _with_room(min(ys), max(ys))
    across = min(xs), max(xs)
    if across[0] == across[1] or chart.x_names:
        across = across[0] - 0.5, across[1] + 0.5
    if chart.logarithmic:
        below, above = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
        return across, (10.0**below, 10.0 ** max(above, below + 1))
    return across, (0.0, max(ys) * 1.05 or 1.0)


def _with_room(low: float, high: float) -> Range:
    size = high - low or abs(low) * 0.1 or 1.0
    return low - _ROOM * size, high + _ROOM * size


def decades(low: float, high: float, most: int) -> list[float]:
    """Choose at most so many powers of ten of a range, the lowest among them."""
    first, last = round(math.log10(low)), round(math.log10(high))
    step = max(1, -(-(last - first + 1) // most))
    return [10.0**power for power in range(first, last + 1, step)]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Choose at most so many round numbers of a range."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * step for step in _STEPS if power * step >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]
