"""What reports write where a figure is missing, spreads or is a ratio of two arms."""

from __future__ import annotations

from mvw_cli.bench.measure.stats import Ratio, Summary
from mvw_cli.text import (
    count,
    factor,
    millions,
    milliseconds,
    number,
    percent,
    percents,
    plural,
    scaled,
    seconds,
)

__all__ = [
    "NONE",
    "count",
    "factor",
    "millions",
    "milliseconds",
    "number",
    "percent",
    "percents",
    "plural",
    "ratio",
    "scaled",
    "seconds",
    "spread",
]  # fmt: skip

NONE = "-"
"""Stands where nothing was measured."""


def ratio(found: Ratio) -> str:
    """Write a ratio of rates, and what its interval allows to say."""
    return f"{factor(found.median, found.interval_95)} {found.shown}"


def spread(summary: Summary, *, judged: bool) -> str:
    """Write how far the samples lie apart and, if that is to be judged, whether it is too far."""
    if len(summary.samples) < 2:
        return NONE
    return f"{percent(summary.spread)}{' unstable' if judged and summary.unstable else ''}"
