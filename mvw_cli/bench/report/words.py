"""Figures as people read them: three digits, a unit, and no claim that an interval does not back.

It knows numbers and nothing of reports.
"""

from __future__ import annotations

import math

from mvw_cli.bench.measure.stats import Ratio, Summary

NONE = "-"
"""Stands where nothing was measured."""


def number(value: float) -> str:
    """Write a number with three significant digits, whole from 1,000 on."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    rounded = float(f"{value:.2e}")
    if abs(rounded) >= 1000:
        return f"{value:,.0f}"
    return f"{rounded:.{2 - math.floor(math.log10(abs(rounded)))}f}"


def count(value: float) -> str:
    """Write a number of things: whole where it is."""
    return f"{value:,.0f}" if float(value).is_integer() else number(value)


def milliseconds(value: float) -> str:
    """Write a time given in milliseconds, in µs, ms or s."""
    if 0 < abs(value) < 0.1:
        return f"{number(1000 * value)} µs"
    return f"{number(value)} ms" if abs(value) < 999.5 else f"{number(value / 1000)} s"


def seconds(value: float) -> str:
    """Write a time given in seconds."""
    return f"{number(value)} s" if abs(value) >= 1 else milliseconds(1000 * value)


def percent(share: float) -> str:
    """Write a share; what is neither none nor all does not become it by rounding."""
    written = f"{100 * share:.1f}"
    if written == "100.0" and share < 1:
        return "> 99.9 %"
    if written == "0.0" and share > 0:
        return "< 0.1 %"
    return f"{written.removesuffix('.0')} %"


def percents(bounds: tuple[float, float]) -> str:
    """Write an interval of shares: `[60 %, 85 %]`."""
    return "[" + ", ".join(f"{100 * bound:.0f} %" for bound in bounds) + "]"


def factor(value: float) -> str:
    """Write how many times as much: `1.25 ×`."""
    return f"{value:.2f} ×"


def within(value: float, bounds: tuple[float, float]) -> str:
    """Write a factor with its interval; an end that is not 1 is not rounded to 1."""
    places = 2
    while places < 5 and any(end != 1 and float(f"{end:.{places}f}") == 1 for end in bounds):
        places += 1
    low, high = bounds
    return f"{value:.{places}f} × [{low:.{places}f}, {high:.{places}f}]"


def ratio(found: Ratio) -> str:
    """Write a ratio of rates, and what its interval allows to say."""
    return f"{within(found.median, found.interval_95)} {found.shown}"


def spread(summary: Summary, *, judged: bool) -> str:
    """Write how far the samples lie apart and, if that is to be judged, whether it is too far."""
    if len(summary.samples) < 2:
        return NONE
    return f"{percent(summary.spread)}{' unstable' if judged and summary.unstable else ''}"


def scaled(amount: float, unit: str) -> str:
    """Write a large amount with a prefix of its unit: `23.0 TFLOP`."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if amount >= size:
            return f"{number(amount / size)} {prefix}{unit}"
    return f"{number(amount)} {unit}"


def things(amount: int) -> str:
    """Write a large number of things in billions or millions."""
    if amount >= 10**8:
        return f"{amount / 1e9:.2f} billion"
    return f"{amount / 1e6:.2f} million" if amount >= 10**5 else f"{amount:,}"


def plural(amount: int, word: str) -> str:
    """Write a number with its noun."""
    return f"{amount:,} {word}{'' if amount == 1 else 's'}"
