"""Pictures as blocks for a terminal: one small band per arm, all to the same scale.

Bands do not hide one another, as lines of characters would. Rich is not needed: a row is a
string, with the place of its colour in the palette. ASCII serves where a terminal has no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from statistics import median

from mvw_cli.bench.report import words
from mvw_cli.render.axis import ranges
from mvw_cli.render.picture import Line, Picture

HEIGHT = 3
"""Rows of a band."""
MARGIN = 9
"""Columns of the numbers on the left."""


@dataclass(frozen=True, slots=True)
class Alphabet:
    """The characters that a picture is made of."""

    levels: str
    """From an empty cell to a full one."""
    faint: str
    edge: str
    up: str
    floor: str


UNICODE = Alphabet(" ▁▂▃▄▅▆▇█", "░", "│", "▲", "─")
ASCII = Alphabet(" .:#", "-", "|", "^", "-")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a picture; colour is a place in the palette, None for text."""

    text: str
    colour: int | None = None


def draw(picture: Picture, width: int, alphabet: Alphabet = UNICODE) -> list[Row]:
    """Draw a picture at most `width` columns wide."""
    what = picture.unit if picture.lines else f"{picture.y_label}, {picture.unit}"
    rows = [Row(f"{picture.title} ({what})")]
    if picture.lines:
        rows += _bands(picture, max(10, width - MARGIN - 2), alphabet)
    if picture.points:
        rows += _bars(picture, width, alphabet)
    return [Row(row.text[:width].rstrip(), row.colour) for row in rows]


def _bands(picture: Picture, columns: int, alphabet: Alphabet) -> list[Row]:
    top = max((max([*line.ys, *(line.behind or [])]) for line in picture.lines), default=0.0)
    lowest, highest = "0", words.number(top)
    low = 0.0
    if picture.logarithmic:
        low, high = ranges(picture)[1]
        lowest, highest = f"{low:g}", f"{high:g}"
        top = log10(high / low)
    first = min(min(line.xs) for line in picture.lines)
    last = max(max(line.xs) for line in picture.lines)
    columns = min(columns, max(1, round(last - first) + 1))
    rows, faint = [], False
    for line in picture.lines:
        bins, behind = (
            None if values is None else _bins(line, _heights(values, low), first, last, columns)
            for values in (line.ys, line.behind)
        )
        assert bins is not None
        rows.append(Row(f"{'':{MARGIN}} {alphabet.edge} {line.name}", line.colour))
        for height in range(HEIGHT - 1, -1, -1):
            label = highest if height == HEIGHT - 1 else lowest if height == 0 else ""
            cells = "".join(
                _cell(value, behind[place] if behind else None, top, height, alphabet)
                for place, value in enumerate(bins)
            )
            faint = faint or alphabet.faint in cells
            rows.append(Row(f"{label:>{MARGIN}} {alphabet.edge}{cells}", line.colour))
        if line.withdrawn_after is not None:
            rows.append(_mark(line, line.withdrawn_after, first, last, columns, alphabet))
    axis = f"{first:.0f}"
    end = f"{last:.0f} {picture.x_label}"
    floor = Row(f"{'':{MARGIN}} {alphabet.edge}{alphabet.floor * columns}")
    ends = Row(f"{'':{MARGIN}}  {axis}{end:>{max(len(end) + 1, columns - len(axis))}}")
    if faint:
        return [*rows, floor, ends, Row(f"{'':{MARGIN}}  {alphabet.faint} {picture.behind}")]
    return [*rows, floor, ends]


def _heights(values: Sequence[float], low: float) -> Sequence[float]:
    """Say how high values stand; `low` is the end of a logarithmic scale, or 0."""
    return [log10(max(value / low, 1.0)) for value in values] if low else values


def _bins(
    line: Line, values: Sequence[float], first: float, last: float, columns: int
) -> list[float | None]:
    """Take the median of the values that fall into a column, or what came before it."""
    found: list[list[float]] = [[] for _ in range(columns)]
    for x, value in zip(line.xs, values, strict=True):
        found[_column(x, first, last, columns)].append(value)
    bins: list[float | None] = []
    for place, bucket in enumerate(found):
        more = any(found[place:])
        bins.append(median(bucket) if bucket else bins[-1] if bins and more else None)
    return bins


def _column(x: float, first: float, last: float, columns: int) -> int:
    return min(columns - 1, int((x - first) * columns / (last - first + 1)))


def _cell(
    value: float | None, behind: float | None, top: float, height: int, alphabet: Alphabet
) -> str:
    if value is None or top <= 0:
        return " "
    full = len(alphabet.levels) - 1
    level = round(value / top * HEIGHT * full) - height * full
    if level > 0:
        return alphabet.levels[min(level, full)]
    if behind is not None and round(behind / top * HEIGHT * full) - height * full > 0:
        return alphabet.faint
    return " "


def _mark(
    line: Line, after: int, first: float, last: float, columns: int, alphabet: Alphabet
) -> Row:
    said = f"withdrawn after {words.plural(after, 'token')}"
    if not first <= line.mark <= last:
        return Row(f"{'':{MARGIN}}  {said}")
    place = _column(line.mark + 0.5, first, last, columns)  # the first token after it
    if place + len(said) + 2 > columns and place >= len(said) + 1:
        return Row(f"{'':{MARGIN}}  {f'{said} {alphabet.up}':>{place + 1}}")
    return Row(f"{'':{MARGIN}}  {'':{place}}{alphabet.up} {said}")


def _bars(picture: Picture, width: int, alphabet: Alphabet) -> list[Row]:
    """Draw points as bars of their height, with what lies along the other axis as a number."""
    full = len(alphabet.levels) - 1
    level = [(picture.level[0], None, picture.level[1], None)] if picture.level else []
    named = [(point.name, point.x, point.y, point.colour) for point in picture.points]
    bars = [*named, *level]
    longest = min(max(len(name) for name, *_ in bars), 24)
    columns = max(8, min(40, width - longest - 22))
    rows = []
    for name, x, y, colour in bars:
        speed = "" if x is None else words.factor(x)
        bar = alphabet.levels[full] * round(max(0.0, y) / 100 * columns)
        rows.append(
            Row(f"{name:<{longest}} {speed:>8} {bar:<{columns}} {words.percent(y / 100)}", colour)
        )
    rows.append(Row(f"{'':{longest}} {'':>8} {picture.x_label}: the figure before the bar"))
    return rows
