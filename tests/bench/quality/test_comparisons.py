"""When two answers are the same, and figures of an arm, from answers made by hand."""

from __future__ import annotations

import pytest

from mvw_cli.bench.matching import answers_match
from mvw_cli.bench.quality.answers import Given, Row, compared
from mvw_cli.bench.quality.divergence import Divergence
from mvw_cli.bench.stats import FEWEST_ITEMS, mcnemar, paired_drop, wilson


def given(tokens: str, answer: str, correct: bool | None, seconds: float = 1.0) -> Given:
    return Given(tuple(map(int, tokens.split())), answer, seconds, correct)


def row(base: Given, arm: Given, agrees: str, kl: list[float]) -> Row:
    found = Divergence(kl, [letter == "y" for letter in agrees], 2)
    return Row({"baseline": base, "m=2": arm}, {"m=2": found}, base.correct is not None)


ROWS = [
    row(given("1 2 3", "red", True), given("1 2 3", "red", True, 0.5), "yyy", [0, 0, 0.3]),
    row(given("1 2 3", "red", True), given("1 2 4 5", "blue", False, 0.7), "yyn", [0, 0, 3]),
    row(given("1 2", "no", False), given("1 2 9", "No.", False, 0.9), "yy", [0, 0.2]),
    row(given("7 7 7 7", "4", None), given("8", "4.0", None, 0.1), "ynnn", [1, 1, 1, 1]),
    row(given("5", "2", False), given("5 6", "3", True, 0.3), "n", [2]),
]


def test_every_figure() -> None:
    arm = compared("m=2", ROWS)
    assert (arm.items, arm.identical, arm.same_answer) == (5, 1, 3)
    assert arm.first_difference is not None and arm.kl_nats is not None
    assert arm.first_difference.samples == [3, 3, 1, 2]  # an end counts as a difference
    assert arm.agreement == 8 / 13  # of all tokens, not the mean of the answers
    assert arm.kl_nats.samples == pytest.approx([0.1, 1.0, 0.1, 1.0, 2.0])
    assert arm.generated_tokens.samples == [3, 4, 3, 1, 2]
    assert arm.seconds.samples == [0.5, 0.7, 0.9, 0.1, 0.3]
    # Four items have a reference.
    assert (arm.correct, arm.lost, arm.won) == (2, 1, 1)
    assert arm.accuracy_interval_95 == wilson(2, 4)
    assert arm.p_value == mcnemar(1, 1) == 1
    assert arm.drop_interval_95 == paired_drop(1, 1, 4)


def test_the_baseline_is_not_compared_with_itself() -> None:
    base = compared("baseline", ROWS)
    assert (base.items, base.identical, base.correct) == (5, 5, 2)
    assert base.first_difference is None
    nothing = (base.agreement, base.kl_nats, base.p_value, base.same_answer, base.drop_interval_95)
    assert nothing == (None,) * 5


def test_without_references_nothing_is_judged() -> None:
    arm = compared("m=2", [ROWS[3]])
    nothing = (arm.correct, arm.accuracy_interval_95, arm.p_value, arm.lost, arm.won)
    assert nothing == (None,) * 5 and arm.drop_interval_95 is None


def test_the_interval_of_the_agreement_draws_whole_answers() -> None:
    assert compared("m=2", ROWS).agreement_interval_95 is None  # too few
    same = compared("m=2", [ROWS[0]] * FEWEST_ITEMS)
    assert same.agreement_interval_95 == (1, 1)
    mixed = compared("m=2", ROWS * 8)
    assert mixed.agreement_interval_95 is not None and mixed.agreement is not None
    low, high = mixed.agreement_interval_95
    assert 0.45 < low < mixed.agreement < high < 0.8
    # A bootstrap over tokens would have taken 104 of them for independent.
    assert high - low > 2 * 1.96 * (mixed.agreement * (1 - mixed.agreement) / 104) ** 0.5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Red", "red"),
        (" top  left\n", "Top left."),
        ("3", "3.0"),
        ("+3", "3."),
        ("1,000", "1000.00"),
        ("-0.50", "-0.5"),
        ("STRASSE", "straße"),
        ("", " "),
    ],
)
def test_the_same(one: str, other: str) -> None:
    assert answers_match(one, other) and answers_match(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("three", "3"),
        ("red", "it is red"),
        ("3", "30"),
        ("1,00", "100"),
        ("no", "yes"),
        ("", "yes"),
        ("3 circles", "3.0 circles"),
        ("wait...", "wait"),
    ],
)
def test_not_the_same(one: str, other: str) -> None:
    assert not answers_match(one, other) and not answers_match(other, one)
