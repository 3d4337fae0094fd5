"""When two answers are the same."""

from __future__ import annotations

import pytest

from mvw_cli.bench.quality.answers import answers_match


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
