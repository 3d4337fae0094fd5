"""Samples of one figure summed up, and two arms compared by pairs.

A ratio is taken between neighbours in time only, so that a machine whose speed drifts does not
decide the outcome. It does not know what was measured.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Literal

UNSTABLE = 0.2
"""Spread from which a figure is called unstable: the distance of its quartiles over its median."""
FEWEST_PAIRS = 6
"""With fewer nothing is claimed: five ratios on one side of 1 come about by chance once in 16."""
_DRAWS = 4000
Shown = Literal["faster", "slower", "no difference shown"]


@dataclass(frozen=True, slots=True)
class Summary:
    """Samples of one figure; the unit is in the name of the field that holds it."""

    median: float
    p90: float
    p99: float
    spread: float
    """Distance of the quartiles over the median."""
    samples: list[float]

    @property
    def unstable(self) -> bool:
        """Whether the spread is too large for the median to mean much."""
        return self.spread > UNSTABLE


@dataclass(frozen=True, slots=True)
class Ratio:
    """Paired ratio of an arm to its baseline, with its bootstrap interval."""

    median: float
    interval_95: tuple[float, float]
    pairs: int

    @property
    def shown(self) -> Shown:
        """What the interval allows to say of a ratio of rates."""
        low, high = self.interval_95
        if self.pairs < FEWEST_PAIRS:
            return "no difference shown"
        if low > 1:
            return "faster"
        return "slower" if high < 1 else "no difference shown"


def summarise(samples: Sequence[float]) -> Summary:
    """Sum up samples.

    Raises:
        ValueError: there are none.
    """
    values = list(samples)
    if not values:
        raise ValueError("no samples")
    if len(values) == 1:
        return Summary(values[0], values[0], values[0], 0.0, values)
    parts = quantiles(values, n=100, method="inclusive")
    middle = median(values)
    spread = (parts[74] - parts[24]) / middle if middle else 0.0
    return Summary(middle, parts[89], parts[98], spread, values)


def paired_ratio(
    numerator: Sequence[float], denominator: Sequence[float], *, seed: int = 0
) -> Ratio:
    """Median of the pairwise ratios; the interval is a percentile bootstrap over the pairs.

    Raises:
        ValueError: the lengths differ, or are 0.
    """
    ratios = [one / other for one, other in zip(numerator, denominator, strict=True)]
    if not ratios:
        raise ValueError("no pairs")
    rng = random.Random(seed)
    medians = sorted(median(rng.choices(ratios, k=len(ratios))) for _ in range(_DRAWS))
    low, high = medians[int(0.025 * _DRAWS)], medians[int(0.975 * _DRAWS)]
    return Ratio(median(ratios), (low, high), len(ratios))
