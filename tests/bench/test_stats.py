"""Samples summed up, and arms compared by pairs: nothing is claimed that the samples don't show."""

from __future__ import annotations

import random
from itertools import product
from math import log, sqrt
from statistics import median

import pytest
from processes import ROOT

from mvw_cli.bench.stats import (
    Ratio,
    bootstrap_interval,
    mcnemar,
    means,
    medians,
    paired_drop,
    paired_ratio,
    summarise,
    wilson,
)


def test_a_summary() -> None:
    found = summarise([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.median, found.p90, found.samples) == (3.0, pytest.approx(4.6), [4, 1, 3, 2, 5])
    assert found.spread == pytest.approx(2 / 3)
    assert found.unstable
    assert not summarise([10.0, 10.1, 9.9, 10.0]).unstable
    assert summarise([2.0]).p99 == 2.0
    with pytest.raises(ValueError, match="no samples"):
        summarise([])


def test_a_ratio_is_taken_between_neighbours() -> None:
    drifting = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]  # the machine slows down under both arms
    found = paired_ratio([1.5 * one for one in drifting], drifting)
    assert found.median == pytest.approx(1.5)
    assert found.interval_95 == (pytest.approx(1.5), pytest.approx(1.5))
    assert found.shown == "faster"


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(3)
    held = 0
    for seed in range(200):
        ratios = [rng.lognormvariate(0.0, 0.1) for _ in range(25)]
        low, high = paired_ratio(ratios, [1.0] * 25, seed=seed).interval_95
        held += low <= 1.0 <= high
    assert 180 <= held <= 199


def test_fewer_than_six_pairs_claim_nothing() -> None:
    """The number that the docs name, whatever the constant is called."""
    for pairs in range(1, 6):
        assert paired_ratio([2.0] * pairs, [1.0] * pairs).shown == "no difference shown"
        assert paired_ratio([0.5] * pairs, [1.0] * pairs).shown == "no difference shown"
    assert paired_ratio([2.0] * 6, [1.0] * 6).shown == "faster"
    assert paired_ratio([0.5] * 6, [1.0] * 6).shown == "slower"
    said = " ".join((ROOT / "docs" / "measuring.md").read_text(encoding="utf-8").split())
    assert "six pairs" in said


def test_an_interval_that_covers_1_shows_nothing() -> None:
    assert Ratio(1.1, (0.99, 1.2), 9).shown == "no difference shown"
    assert Ratio(1.1, (1.0, 1.2), 9).shown == "no difference shown"
    assert Ratio(1.1, (1.01, 1.2), 9).shown == "faster"
    assert Ratio(0.9, (0.8, 0.99), 9).shown == "slower"


def test_the_bootstrap_is_that_of_the_plain_loop() -> None:
    """Against resampling by hand, and the same each time; in several pieces as in one."""
    rng = random.Random(1)
    values = [rng.gauss(10, 2) for _ in range(15)]
    found = bootstrap_interval(medians, values)
    assert found == bootstrap_interval(medians, values)
    by_hand = sorted(median(rng.choices(values, k=15)) for _ in range(20_000))
    # As shares of the draws by hand, since a median takes few values.
    for end, share in zip(found, (0.025, 0.975), strict=True):
        below = sum(one < end for one in by_hand) / 20_000
        upto = sum(one <= end for one in by_hand) / 20_000
        assert below - 0.015 <= share <= upto + 0.015
    many = [rng.gauss(10, 2) for _ in range(5000)]
    low, high = bootstrap_interval(means, many)
    assert high - low == pytest.approx(2 * 1.96 * 2 / 5000**0.5, rel=0.15)


def test_two_samples_are_drawn_apart() -> None:
    """Of the difference of equal samples: drawn together it would always be 0."""
    values = [float(one) for one in range(20)]
    low, high = bootstrap_interval(lambda a, b: means(a) - means(b), values, values)
    assert low < -2 and high > 2


def test_pairs_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="no pairs"):
        paired_ratio([], [])


# -- shares: against published figures and brute force ------------------------------------------


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


def test_what_is_no_share_is_refused() -> None:
    for wrong in ((1, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError):
            wilson(*wrong)
    with pytest.raises(ValueError):
        paired_drop(3, 3, 5)
