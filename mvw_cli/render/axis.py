"""The axes of a picture: what range they cover, and where their numbers stand."""

from __future__ import annotations

import math
from itertools import pairwise

from mvw_cli.render.picture import Picture

Range = tuple[float, float]
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_MARKED = 1.15
"""How far y goes beyond the curves where the names of marks stand above them."""
_ROOM = 0.06
"""Part of a range that is left free beside points."""


def ranges(picture: Picture) -> tuple[Range, Range]:
    """Say what x and y cover: curves from 0 on, points with some room around their intervals.

    A logarithmic y covers whole powers of ten.
    """
    if picture.lines:
        xs = [x for line in picture.lines for x in (line.xs[0], line.xs[-1])]
        ys = [y for line in picture.lines for y in (*line.ys, *(line.behind or []))]
        if picture.level:
            ys.append(picture.level[1])
        if picture.logarithmic:
            return _wide((min(xs), max(xs))), _whole_decades((min(ys), max(ys)))
        marked = any(line.withdrawn_after is not None for line in picture.lines)
        return _wide((min(xs), max(xs))), (0.0, max(ys) * (_MARKED if marked else 1.05) or 1.0)
    xs = [x for point in picture.points for x in (point.x, *(point.x_interval or ()))]
    ys = [y for point in picture.points for y in (point.y, *(point.y_interval or ()))]
    if picture.level:
        ys.append(picture.level[1])
    return _room((min(1.0, *xs), max(1.0, *xs))), _room((min(ys), max(ys)))


def _wide(found: Range) -> Range:
    return found if found[1] > found[0] else (found[0] - 0.5, found[1] + 0.5)


def _whole_decades(found: Range) -> Range:
    low, high = (math.log10(end) for end in found)
    below, above = math.floor(low), math.ceil(high)
    return 10.0**below, 10.0 ** max(above, below + 1)


def decades(low: float, high: float, most: int) -> list[float]:
    """Choose at most so many powers of ten of a range, the lowest among them."""
    first, last = round(math.log10(low)), round(math.log10(high))
    step = max(1, -(-(last - first + 1) // most))
    return [10.0**power for power in range(first, last + 1, step)]


def _room(found: Range) -> Range:
    size = found[1] - found[0] or abs(found[0]) * 0.1 or 1.0
    return found[0] - _ROOM * size, found[1] + _ROOM * size


def ticks(low: float, high: float, most: int) -> list[float]:
    """Choose at most so many round numbers of a range."""
    if high <= low or most < 1:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * step for step in _STEPS if power * step >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def tick_text(value: float, values: list[float]) -> str:
    """Write a tick with as many places as its neighbours need."""
    step = min((b - a for a, b in pairwise(values)), default=1.0)
    places = max(0, min(6, -math.floor(math.log10(step) + 1e-9))) if step > 0 else 0
    if abs(step * 10**places - round(step * 10**places)) > 1e-6:  # steps of 2.5
        places += 1
    return f"{value:,.{places}f}"
