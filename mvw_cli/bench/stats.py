"""Samples of one figure summed up, arms compared by pairs, the one bootstrap, and exact tests.

A ratio is taken between neighbours in time only, so that a machine whose speed drifts does not
decide the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
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
_Z = 1.959964
"""97.5th percentile of the normal distribution, for intervals of 95 %."""
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
    """Sum up samples, of which there is at least one."""
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
    """Take the median of the pairwise ratios; its interval is bootstrapped over the pairs."""
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


# -- shares -----------------------------------------------------------------------------------


def wilson(right: int, total: int) -> tuple[float, float]:
    """Compute the 95 % score interval of a share (Wilson 1927)."""
    if total < 1 or not 0 <= right <= total:
        raise ValueError(f"{right} of {total} is no share")
    share, square = right / total, _Z * _Z
    centre = (share + square / (2 * total)) / (1 + square / total)
    spread = sqrt(share * (1 - share) / total + square / (4 * total**2))
    half = _Z * spread / (1 + square / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(lost: int, won: int) -> float:
    """Compute the two-sided p-value of McNemar's exact test, from the pairs that differ.

    Under the null hypothesis each of them is as likely to go the one way as the other.
    """
    differing = lost + won
    ways = tail = 1
    for count in range(min(lost, won)):
        ways = ways * (differing - count) // (count + 1)
        tail += ways
    # Divided as whole numbers: 2^1100 is no float any more.
    return min(1.0, 2 * tail / (1 << differing))


def paired_drop(lost: int, won: int, pairs: int) -> tuple[float, float]:
    """Compute the 95 % interval of the drop between two shares of the same items.

    Tango's score interval (Statistics in Medicine 17, 1998, p. 891), which holds where nothing or
    everything differs, too.

    Args:
        lost: items that are right in the first share and wrong in the second.
        won: the reverse.
        pairs: all items.
    """
    if pairs < 1 or min(lost, won) < 0 or lost + won > pairs:
        raise ValueError(f"{lost} lost and {won} won of {pairs} pairs")

    def statistic(drop: float) -> float:
        linear = -lost - won + (2 * pairs - lost + won) * drop
        constant = -won * drop * (1 - drop)
        root = sqrt(max(0.0, linear * linear - 8 * pairs * constant))
        variance = 2 * (root - linear) / (4 * pairs) + drop * (1 - drop)
        distance = lost - won - pairs * drop
        if variance <= 0:
            return 0.0 if distance == 0 else distance * float("inf")
        return distance / sqrt(pairs * variance)

    estimate = (lost - won) / pairs
    low = _crossing(lambda drop: statistic(drop) - _Z, -1.0, estimate)
    high = _crossing(lambda drop: statistic(drop) + _Z, estimate, 1.0)
    return low, high


def _crossing(falling: Callable[[float], float], low: float, high: float) -> float:
    """Find where a falling function crosses zero, or the end that it does not reach."""
    for _ in range(60):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
