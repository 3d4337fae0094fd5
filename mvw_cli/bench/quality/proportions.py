"""Shares and their intervals, and two shares compared by pairs: exact tests, no library."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

_Z = 1.959964
"""97.5th percentile of the normal distribution, for intervals of 95 %."""


def wilson(right: int, total: int) -> tuple[float, float]:
    """Compute the 95 % score interval of a share (Wilson 1927).

    Raises:
        ValueError: the share is one of nothing.
    """
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

    Raises:
        ValueError: more items differ than there are.
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
