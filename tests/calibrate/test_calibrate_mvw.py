"""`mvw calibrate mvw`: the rule of --suggest over m and tags, and the command that applies it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from processes import Ran

from mvw_cli.bench.documents import BASELINE, NO_IMAGE
from mvw_cli.bench.quality.answers import Given, Row
from mvw_cli.bench.quality.divergence import Divergence
from mvw_cli.bench.verdict.suggest import suggest
from mvw_cli.calibrate.mvw import (
    MvwSearch,
    answers_of,
    choose,
    row_from_dict,
    seen_tokens,
)
from mvw_cli.profiles.resolution import resolve
from mvw_cli.profiles.withdrawal import withdrawal_policy

LENGTH = 40


def row(right: dict[str, bool], at: dict[str, int | None], *, blind: bool = False) -> Row:
    """One item; `right` by arm, `at` the token of its withdrawal."""
    given = {
        name: Given(tuple(range(LENGTH)), "2" if good else "3", 1.0, good)
        for name, good in {BASELINE: True, NO_IMAGE: blind, **right}.items()
    }
    divergence = {
        name: Divergence([0.0] * LENGTH, [right.get(name, blind)] * LENGTH, at.get(name))
        for name in (*right, NO_IMAGE)
    }
    return Row(given, divergence, True)


def rows(count: int, wrong: dict[str, int], at: dict[str, int | None]) -> list[Row]:
    """So many items, of which each arm has so many wrong."""
    return [
        row({name: number >= few for name, few in wrong.items()}, at) for number in range(count)
    ]


def test_the_smallest_m_is_that_of_suggest() -> None:
    found = rows(20, {"m=4": 5, "m=8": 0, "m=16": 0}, {"m=4": 4, "m=8": 8, "m=16": 16})
    outcome = choose(found, ["m=4", "m=8", "m=16"], 0.02)
    m, reason = suggest(answers_of(found, ["m=4", "m=8", "m=16"]), 0.02)
    assert (outcome.withdrawal, outcome.reason) == ({"policy": "mvw", "m": m}, reason)
    assert m == 8
    assert [one["within"] for one in outcome.curve] == [None, False, True, True, False]
    assert [one["loss"] for one in outcome.curve] == [None, 0.25, 0.0, 0.0, 1.0]


def test_a_tag_that_comes_earlier_wins() -> None:
    arms = {"m=4": 5, "m=16": 0, "until </A>": 0, "until </B>": 3}
    at = {"m=4": 4, "m=16": 16, "until </A>": 9, "until </B>": 2}
    outcome = choose(rows(20, arms, at), [*arms], 0.02)
    assert outcome.withdrawal == {"policy": "mvw", "until": "</A>"}
    assert "With until </A>, 20 of 20 answers are right" in outcome.reason
    assert "m = 16 keeps the answers as well, with 16.0" in outcome.remarks[0]


def test_an_m_that_comes_earlier_wins() -> None:
    arms = {"m=4": 0, "until </A>": 0}
    outcome = choose(rows(20, arms, {"m=4": 4, "until </A>": 9}), [*arms], 0.02)
    assert outcome.withdrawal == {"policy": "mvw", "m": 4}


def test_a_tag_that_never_comes_withdraws_nothing() -> None:
    found = rows(4, {"until </A>": 0}, {"until </A>": None})
    assert seen_tokens(found, "until </A>") == LENGTH
    assert seen_tokens(found, NO_IMAGE) == 0 and seen_tokens(found, BASELINE) == LENGTH


def test_nothing_is_within_the_tolerance() -> None:
    arms = {"m=4": 5, "until </A>": 6}
    outcome = choose(rows(20, arms, {"m=4": 4, "until </A>": 9}), [*arms], 0.02)
    assert outcome.withdrawal is None
    assert "With m = 4, the latest" in outcome.reason and "With until </A>" in outcome.reason


def test_questions_that_need_no_image_decide_nothing() -> None:
    blind = [row({"m=4": True}, {"m=4": 4}, blind=True) for _ in range(20)]
    outcome = choose(blind, ["m=4"], 0.02)
    assert outcome.withdrawal is None and "hardly need their images" in outcome.reason


def test_rows_survive_the_log() -> None:
    [one] = rows(1, {"m=4": 0}, {"m=4": 4})
    read = row_from_dict(json.loads(json.dumps(asdict(one))), "2")
    assert read == one
    assert row_from_dict(asdict(one), "3").given["m=4"].correct is False
    assert row_from_dict(asdict(one), None).referenced is False


# -- the command ------------------------------------------------------------------------------

Run = Callable[..., Ran]
WORDS = ("calibrate", "mvw", "--m", "8,64", "--tags", "</CAPTION>", "--limit", "2")


def test_the_command_writes_a_profile_that_withdraws(
    mvw: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = mvw(*WORDS)
    assert ran.code == 0, ran.err
    report = json.loads((here / "mvw.report.json").read_text())
    arms = ["baseline", "m=8", "m=64", "until </CAPTION>", "no image"]
    assert [one["arm"] for one in report["outcome"]["curve"]] == arms
    policy = withdrawal_policy(resolve("./mvw.yaml", {}).profile)
    assert policy.describe() in ("at </CAPTION>", "m=64")  # the embedded model reads, then thinks
    assert {path.name for path in here.glob("*.svg")} == {"mvw.answers-by-m.svg", "mvw.kl-by-m.svg"}
    # A second run finds every item in the log.
    from mvw_cli.bench.quality import answers

    def never(*args: Any, **more: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(answers, "answer_item", never)
    assert mvw(*WORDS, "--tolerance", "0.5").code == 0
    again = json.loads((here / "mvw.report.json").read_text())
    assert again["samples"] == report["samples"] and again["settings"]["tolerance"] == 0.5


def test_an_interrupt_within_an_item_is_one(
    mvw: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it comes in the control, whose failures leave it out."""
    plain = MvwSearch.measure

    def measure(self: Any, run: Any, item: Any, request: Any) -> Any:
        # The item's first arms run; then the user has had enough.
        def seen(doing: str, done: int, total: int) -> None:
            if "no image" in doing:
                run.stopping = lambda: True

        run.progress = seen
        return plain(self, run, item, request)

    monkeypatch.setattr(MvwSearch, "measure", measure)
    ran = mvw(*WORDS)
    assert ran.code == 130 and "0 samples are in mvw.samples.jsonl" in ran.err
    assert not (here / "mvw.report.json").exists()
