"""Figures from records: intervals, pairs, turned options, groups, yes and no."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mvw_cli.batch.items import Item
from mvw_cli.batch.store.record import SCHEMA_VERSION
from mvw_cli.bench.stats import mcnemar, paired_drop, wilson
from mvw_cli.evaluate.dataset import Dataset, Question
from mvw_cli.evaluate.report import sections, shown, summary, title, verdicts
from mvw_cli.evaluate.results import (
    NEVER,
    NO_IMAGE,
    Arm,
    ArmResult,
    EvalReport,
    read_arm,
    summed,
)
from mvw_cli.evaluate.rules import Score
from mvw_cli.render.terminal import height


def record(**other: Any) -> dict[str, Any]:
    memory = {"kv_bytes_prefill": 100, "kv_bytes_end": 40}
    return {
        "status": "ok",
        "answer": "x",
        "finish_reason": "stop",
        "generated_tokens": 4,
        "vision_tokens": 9,
        "timings": {"latency_ms": 1500.0},
        "memory": memory,
        **other,
    }


def dataset(count: int, rows: Mapping[int, dict[str, Any]] | None = None, **other: Any) -> Dataset:
    questions = tuple(
        Question(Item(str(n), (), "q"), "q", ("x",), row=(rows or {}).get(n, {}))
        for n in range(count)
    )
    return Dataset("own", "own.tsv", **{"rule": "exact", "questions": questions, **other})


def arm(name: str, values: Mapping[int, float | None]) -> Arm:
    """What each question is worth; None: it failed."""
    failed = {"status": "failed"}
    records = {str(n): failed if v is None else record() for n, v in values.items()}
    scores = {str(n): Score(v, "x", v) for n, v in values.items() if v is not None}
    return Arm(name, records, scores)


def results(data: Dataset, *arms: Arm) -> list[ArmResult]:
    return summed(data, arms, [one.name for one in arms], judged=False)


def test_pairs_are_those_that_both_have_answered() -> None:
    base = arm(NEVER, {n: float(n < 8) for n in range(10)})
    other = arm("m=1", {**{n: float(n < 5) for n in range(8)}, 8: None})
    first, second = results(dataset(10), base, other)
    assert (first.score, first.items, first.failed, first.missing) == (0.8, 10, 0, 0)
    assert first.interval_95 == wilson(8, 10) and first.change is None
    assert (second.items, second.failed, second.missing) == (8, 1, 1)
    change = second.change
    assert change is not None and (change.pairs, change.lost, change.won) == (8, 3, 0)
    assert change.change == pytest.approx(-3 / 8) and change.p_value == mcnemar(3, 0)
    low, high = paired_drop(3, 0, 8)
    assert change.interval_95 == (-high, -low)
    assert second.seconds == 1.5 and second.kv_bytes_end == 40


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (["ok 1", "ok 2"], "ok 2"),
        (["ok 1", "failed 2"], "failed 2"),  # the image was replaced
        (["failed 1", "ok 1", "failed 1"], "ok 1"),
        (["ok 1", "failed None"], "ok 1"),  # the image could not be read that time
        (["failed None", "ok 1"], "ok 1"),
    ],
)
def test_the_last_images_of_a_question_count(told: list[str], wanted: str, tmp_path: Path) -> None:
    def read(name: str, lines: list[str], baseline: Arm | None = None) -> Arm:
        always = {"schema_version": SCHEMA_VERSION, "id": "0", "run": "r", "question": "q"}
        split = [line.split() for line in lines]
        found = [
            record(**always, status=status, key=None if key == "None" else key)
            for status, key in split
        ]
        (tmp_path / "log").write_text("".join(f"{json.dumps(one)}\n" for one in found))
        return read_arm(name, [tmp_path / "log"], dataset(1).questions, baseline)

    base = read(NEVER, told)
    assert (base.records["0"]["status"], base.records["0"]["key"]) == tuple(wanted.split())
    other = read("m=1", [f"ok {wanted[-1]}"], base)
    assert (len(other.records), other.outdated) == (1, 0)
    other = read("m=1", ["ok 3"], base)
    assert (len(other.records), other.outdated) == (0, 1)
    assert len(read(NO_IMAGE, ["ok 3"], base).records) == 1


def test_scores_in_between_are_bootstrapped() -> None:
    base = arm(NEVER, {n: 0.9 for n in range(20)})
    worse = arm("m=1", {n: 0.3 + 0.01 * n for n in range(20)})
    first, second = results(dataset(20), base, worse)
    assert first.score == pytest.approx(0.9)
    assert second.change is not None and second.change.p_value is None
    interval = second.change.interval_95
    assert interval is not None and -0.6 < interval[0] < second.change.change < interval[1] < 0
    assert shown(second.change) == "worse than never"
    few = results(dataset(5), *(arm(n, dict.fromkeys(range(5), 0.5)) for n in (NEVER, "m=1")))
    assert few[1].change is not None and few[1].interval_95 is None
    assert shown(few[1].change) == "too few questions for an interval"


def test_turned_options_are_right_together() -> None:
    rows = {n: {"g_index": n // 2} for n in range(6)}
    data = dataset(6, rows, circular=True)
    (found,) = results(data, arm(NEVER, {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.0, 4: 1.0}))
    assert (found.items, found.score) == (2, 0.5), "the third question lacks a turn"


def test_groups_and_the_figures_of_yes_and_no() -> None:
    rows = {n: {"category": "ab"[n % 2], "split": "one"} for n in range(6)}
    data = dataset(6, rows, rule="yes-no")
    base = arm(NEVER, {n: float(n % 2) for n in range(6)})
    base.scores = {
        id: Score(score.value, "yes" if int(id) < 4 else "no") for id, score in base.scores.items()
    }
    questions = [
        Question(one.item, "q", ("Yes" if n < 3 else "No",), row=one.row)
        for n, one in enumerate(data.questions)
    ]
    data = dataset(0, rule="yes-no", questions=tuple(questions))
    (found,) = results(data, base)
    assert {name: part.score for name, part in found.groups["category"].items()} == {"a": 0, "b": 1}
    assert "split" not in found.groups, "one group says nothing"
    assert found.metrics["precision"] == 3 / 4 and found.metrics["recall"] == 1
    assert found.metrics["f1"] == pytest.approx(6 / 7)


def report(arms: list[ArmResult], **other: Any) -> EvalReport:
    return EvalReport("own", "exact", None, 10, {}, False, {}, "0", arms, **other)


def test_a_title_without_a_model_that_is_known() -> None:
    assert title(report([])) == "mvw eval own: a model not known, 10 questions"


def test_many_categories_and_arms_still_fit_a_screen() -> None:
    rows = {n: {"category": f"category {n % 60:02}"} for n in range(120)}
    data = dataset(120, rows)
    arms = [arm(NEVER, dict.fromkeys(range(120), 1.0))]
    arms += [arm(f"m={n}", {k: float(k % 7 > n) for k in range(120)}) for n in range(9)]
    assert height(summary(report(results(data, *arms))), 100) <= 40
    told = report(results(data, *arms[:3]))
    assert 35 <= height(summary(told), 100) <= 40
    cut = next(one for one in summary(told) if one.name == "by-category")
    assert "more rows in the JSON" in cut.parts[1].text  # type: ignore[union-attr]
    whole = next(one for one in sections(told) if one.name == "by-category")
    assert len(whole.parts[0].rows) == 60  # type: ignore[union-attr]


def test_the_verdict_says_what_is_not_excluded() -> None:
    base = arm(NEVER, {n: float(n < 90) for n in range(100)})
    other = arm("m=8", {n: float(n < 89 or n == 95) for n in range(100)})
    told = list(verdicts(report(results(dataset(100), base, other))))
    assert told[0] == "never: 90 % right [82.6, 94.5]."
    assert told[1].startswith("m=8: +0.0 points [")
    assert ": no difference to never shown, a loss of up to" in told[1]
