"""WeMath: equal to the harness's own code on a complete run, and honest on a part of one."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from harness import folder, synthetic_run, wemath_figures

from mvw_cli.batch.items import Item
from mvw_cli.evaluate.dataset import Question
from mvw_cli.evaluate.rules import first_letter, wemath
from mvw_cli.evaluate.wemath import FourDimensions, four_dimensions

EXPECTED = Path(__file__).parent / "wemath_expected.json"
"""What ms-vlmeval 0.0.20 says of `synthetic_run()`: written by tests/helpers/harness.py."""


def summed(rows: list[dict[str, str]]) -> FourDimensions:
    """By the harness's reading of the answers."""
    return four_dimensions(
        (row["ID"], row["key"], first_letter(row["prediction"]) == row["answer"]) for row in rows
    )


def as_harness(found: FourDimensions) -> dict[str, str]:
    """The figures under the harness's names, written as it writes them."""
    told = {
        "One-step(S1)": f"{found.one_step:.2%}",
        "Two-step(S2)": f"{found.two_step:.2%}",
        "Three-step(S3)": f"{found.three_step:.2%}",
    }
    knowledge, generalization = found.insufficient_knowledge, found.inadequate_generalization
    values: dict[str, Any] = asdict(found)
    for name, kind in (("Strict", "strict"), ("Loose", "loose")):
        mastery, rote = values[f"complete_mastery_{kind}"], values[f"rote_memorization_{kind}"]
        rate = values[f"rote_memorization_rate_{kind}"]
        told |= {
            f"Score ({name})": f"{values[f'vlmevalkit_score_{kind}']:.2%}",
            f"InsufficientKnowledge ({name})": f"{knowledge / 525:.2%} ({knowledge})",
            f"InadequateGeneralization ({name})": f"{generalization / 525:.2%} ({generalization})",
            f"CompleteMastery ({name})": f"{mastery / 525:.2%} ({mastery})",
            f"RoteMemorization ({name})": f"{rate:.2%} ({rote})",
        }
    return told


def test_a_complete_run_is_what_the_harness_says() -> None:
    expected = json.loads(EXPECTED.read_text())
    found = summed(synthetic_run())
    assert found.problems == 525 and found.incomplete == 0
    told = as_harness(found)
    assert told == {name: expected[name] for name in told} and len(told) == 13
    # Of a complete run the two formulas are one.
    assert found.score_strict == found.vlmevalkit_score_strict
    assert found.score_loose == found.vlmevalkit_score_loose


@pytest.mark.skipif(folder() is None, reason="ms-vlmeval and pandas are not installed")
@pytest.mark.parametrize("seed", range(4))
def test_against_the_harness_itself(seed: int) -> None:
    rows = synthetic_run(seed)
    told = as_harness(summed(rows))
    theirs = wemath_figures(rows)
    assert told == {name: theirs[name] for name in told}
    if seed == 0:
        assert json.loads(EXPECTED.read_text()).items() <= theirs.items()


def test_a_part_is_divided_by_what_is_there() -> None:
    """The harness's figure of a smoke run is high whatever was answered."""
    rows = [row for row in synthetic_run() if row["ID"] in {f"2-{n}" for n in range(20)}]
    wrong = [{**row, "prediction": "I cannot tell."} for row in rows]
    found = summed(wrong)
    assert (found.problems, found.insufficient_knowledge) == (20, 20)
    assert found.score_strict == 0 and found.vlmevalkit_score_strict == pytest.approx(505 / 525)
    assert found.three_step is None
    assert found.rote_memorization_rate_strict is None, "the harness divides by zero here"


def test_a_problem_without_all_its_steps_is_left_out() -> None:
    rows = synthetic_run()
    found = summed(rows[1:])
    assert (found.problems, found.incomplete) == (524, 1)


def test_both_readings_of_an_answer() -> None:
    options = {letter: f"{place} cm" for place, letter in enumerate("ABCD")}
    question = Question(Item("1", (), "q"), "q", ("B",), options)
    based = wemath("Based on the figure the answer is C", question)
    assert (based.value, based.read, based.harness) == (0.0, "C", 1.0)
    stated = wemath("The sum is 4.\nAnswer: B", question)
    assert (stated.value, stated.read, stated.harness) == (1.0, "B", 1.0)
    assert re.match("Z|None", str(first_letter("so it is B")))
