"""Samples of one figure summed up, two arms compared by pairs, and the one bootstrap of intervals.

A ratio is taken between neighbours in time only, so that a machine whose speed drifts does not
decide the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

UNSTABLE = 0.2
"""Spread from which a figure is called unstable: the distance of its quartiles over its median."""
FEWEST_PAIRS = 6
"""With fewer nothing is claimed: even the smallest and the largest of n samples enclose the median
with probability 1 - 2/2^n only, which is 95 % from six on."""
FEWEST_ITEMS = 10
"""Answers or other samples below which a bootstrap over them says nothing."""
DRAWS = 4000
_MOST_NUMBERS = 1 << 22
"""Drawn at once: what bounds the memory."""
Shown = Literal["faster", "slower", "no difference shown"]
Drawn = NDArray[np.float64]


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
        return claim(None if self.pairs < FEWEST_PAIRS else self.interval_95)


def claim(interval: tuple[float, float] | None) -> Shown:
    """Return what an interval of a ratio of rates allows to say; None: too few samples for one."""
    if interval is None:
        return "no difference shown"
    low, high = interval
    return "faster" if low > 1 else "slower" if high < 1 else "no difference shown"


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
    """Take the median of the pairwise ratios; its interval is bootstrapped over the pairs.

    Raises:
        ValueError: the lengths differ, or are 0.
    """
    ratios = [one / other for one, other in zip(numerator, denominator, strict=True)]
    if not ratios:
        raise ValueError("no pairs")
    return Ratio(median(ratios), bootstrap_interval(medians, ratios, seed=seed), len(ratios))


def bootstrap_interval(
    statistic: Callable[..., Drawn], *samples: Sequence[Any], seed: int = 0
) -> tuple[float, float]:
    """Compute the 95 % interval of a statistic by the percentile bootstrap.

    Args:
        statistic: gets what was drawn of each of `samples`, # (D, n) or (D, n, k), and returns its
            value for each draw, # (D,).
        samples: each is drawn from with replacement, independently of the others.  # (n,) or (n, k)
    """
    arrays = [np.asarray(one, dtype=float) for one in samples]
    generator = np.random.default_rng(seed)
    size = max(1, min(DRAWS, _MOST_NUMBERS // max(map(len, arrays))))
    values = []
    for start in range(0, DRAWS, size):
        draws = min(size, DRAWS - start)
        drawn = (one[generator.integers(len(one), size=(draws, len(one)))] for one in arrays)
        values.append(statistic(*drawn))
    ordered = np.sort(np.concatenate(values))
    return float(ordered[int(0.025 * DRAWS)]), float(ordered[int(0.975 * DRAWS)])


def medians(drawn: Drawn) -> Drawn:
    """Compute the median of each draw: # (D, n) -> (D,)."""
    return np.asarray(np.median(drawn, axis=1))


def means(drawn: Drawn) -> Drawn:
    """Compute the mean of each draw: # (D, n) -> (D,)."""
    return np.asarray(drawn.mean(axis=1))
