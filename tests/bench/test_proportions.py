"""Intervals and tests of shares, against published figures and brute force."""

from __future__ import annotations

from itertools import product
from math import log, sqrt

import pytest

from mvw_cli.bench.stats import mcnemar, paired_drop, wilson


def test_wilson_is_newcombes_published_one() -> None:
    """Newcombe 1998 (Statistics in Medicine 17, p. 857), table I, method 3."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for counts, interval in published.items():
        assert wilson(*counts) == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (5, 0), (2, 9), (7, 7), (0, 12)])
def test_mcnemar_counts_every_outcome_as_extreme(lost: int, won: int) -> None:
    total = lost + won
    outcomes = [sum(flips) for flips in product((0, 1), repeat=total)]
    extreme = sum(abs(heads - total / 2) >= abs(lost - total / 2) for heads in outcomes)
    assert mcnemar(lost, won) == pytest.approx(extreme / len(outcomes))


def test_mcnemar_of_thousands() -> None:
    assert mcnemar(1200, 1000) == pytest.approx(2.2e-5, rel=0.05)
    assert mcnemar(5000, 5000) == 1


@pytest.mark.parametrize(("lost", "won", "pairs"), [(0, 1, 44), (3, 1, 50), (12, 5, 60)])
def test_the_ends_of_a_paired_drop_are_where_the_score_test_turns(
    lost: int, won: int, pairs: int
) -> None:
    """With the likeliest table of each end found by trying all, not by Tango's formula."""
    for end, sign in zip(paired_drop(lost, won, pairs), (1, -1), strict=True):
        least = max(0.0, -end)
        tried = [least + (1 - abs(end)) / 2 * step / 200_000 for step in range(1, 200_000)]
        won_share = max(
            tried,
            key=lambda share: (
                lost * log(share + end)
                + won * log(share)
                + (pairs - lost - won) * log(1 - 2 * share - end)
            ),
        )
        variance = pairs * (2 * won_share + end * (1 - end))
        assert (lost - won - pairs * end) / sqrt(variance) == pytest.approx(sign * 1.96, abs=1e-3)


@pytest.mark.parametrize("pairs", [1, 20, 100])
def test_where_nothing_differs_the_interval_has_a_closed_form(pairs: int) -> None:
    edge = 1.959964**2 / (pairs + 1.959964**2)
    assert paired_drop(0, 0, pairs) == pytest.approx((-edge, edge))


def test_the_interval_turns_with_the_arms_and_holds_the_estimate() -> None:
    for lost, won, pairs in [(3, 1, 50), (0, 9, 10), (10, 0, 10), (40, 35, 100), (1, 0, 400)]:
        low, high = paired_drop(lost, won, pairs)
        turned = paired_drop(won, lost, pairs)
        assert (low, high) == pytest.approx((-turned[1], -turned[0]), abs=1e-9)
        assert -1 <= low <= (lost - won) / pairs <= high <= 1
        assert low < high


def test_more_items_make_it_narrower() -> None:
    widths = [high - low for low, high in (paired_drop(n // 10, 0, n) for n in (10, 100, 1000))]
    assert widths == sorted(widths, reverse=True)


def test_what_is_no_share_is_refused() -> None:
    for wrong in ((1, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError):
            wilson(*wrong)
    with pytest.raises(ValueError):
        paired_drop(3, 3, 5)
