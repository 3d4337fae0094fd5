"""Samples summed up, and arms compared by pairs: nothing is claimed that the samples don't show."""

from __future__ import annotations

import random

import pytest

from mvw_cli.bench.measure.stats import FEWEST_PAIRS, paired_ratio, summarise


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


def test_no_difference_is_shown_where_the_interval_covers_one() -> None:
    assert paired_ratio([0.9, 1.1] * 5, [1.0] * 10).shown == "no difference shown"
    assert paired_ratio([0.8] * 10, [1.0] * 10).shown == "slower"


def test_few_pairs_show_nothing() -> None:
    assert paired_ratio([2.0] * FEWEST_PAIRS, [1.0] * FEWEST_PAIRS).shown == "faster"
    few = FEWEST_PAIRS - 1
    assert paired_ratio([2.0] * few, [1.0] * few).shown == "no difference shown"


def test_pairs_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="no pairs"):
        paired_ratio([], [])
