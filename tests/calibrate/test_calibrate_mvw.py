"""`mvw calibrate mvw`: what an arm loses, the rule over m and tags, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Ran

from mvw_cli.bench.documents import BASELINE, NO_IMAGE
from mvw_cli.bench.stats import paired_drop, wilson
from mvw_cli.calibrate.mvw import MvwSearch, choose, loss_of, tokens_with_vision
from mvw_cli.calibrate.search import Outcome
from mvw_cli.profiles.resolution import resolve
from mvw_cli.profiles.withdrawal import withdrawal_policy

LENGTH = 40
Sample = dict[str, Any]


def asked(
    count: int,
    wrong: dict[str, int],
    *,
    blind_wrong: int | None = 10**6,
    references: bool = True,
    at: dict[str, int | None] | None = None,
) -> list[Sample]:
    """Items of which each arm has so many wrong, the baseline none; vision goes at token `at`."""
    if blind_wrong is not None:
        wrong = {**wrong, NO_IMAGE: blind_wrong}
    return [
        {
            "reference": "2" if references else None,
            "given": {
                arm: {"answer": "3" if number < few else "2", "token_ids": [7] * LENGTH}
                for arm, few in {BASELINE: 0, **wrong}.items()
            },
            "divergence": {
                arm: {
                    "kl_nats": [0.1] * LENGTH,
                    "agrees": [number >= few] * LENGTH,
                    "withdrawn_after": (at or {}).get(arm, _of_name(arm)),
                }
                for arm, few in wrong.items()
            },
        }
        for number in range(count)
    ]


def _of_name(arm: str) -> int | None:
    return int(arm[2:]) if arm.startswith("m=") else None


def chosen(count: int, wrong: dict[str, int], tolerance: float = 0.02, **given: Any) -> Outcome:
    return choose(asked(count, wrong, **given), [*wrong], tolerance)


def test_the_smallest_m_from_which_on_all_keep_the_answers() -> None:
    lost = {"m=1": 60, "m=8": 30, "m=16": 4, "m=32": 1, "m=64": 0}
    for tolerance, m in {0: 64, 0.01: 32, 0.05: 16, 0.4: 8, 0.65: 1}.items():
        assert chosen(100, lost, tolerance).withdrawal == {"policy": "mvw", "m": m}
    # A smaller one that passes by luck, below one that does not, is none.
    lucky = chosen(100, {"m=4": 0, "m=8": 20, "m=16": 1, "m=32": 0})
    assert lucky.withdrawal == {"policy": "mvw", "m": 16}
    assert [one["arm"] for one in lucky.curve if one.get("chosen")] == ["m=16"]
    assert chosen(100, {"m=4": 0, "m=32": 9}).withdrawal is None


def test_the_curve_holds_the_figures_of_each_arm() -> None:
    curve = chosen(20, {"m=4": 5, "m=8": 0}).curve
    assert [one["arm"] for one in curve] == [BASELINE, "m=4", "m=8", NO_IMAGE]
    assert [one["within"] for one in curve] == [None, False, True, False]
    assert [one["loss"] for one in curve] == [None, 0.25, 0.0, 1.0]
    assert [one["correct"] for one in curve] == [20, 15, 20, 0]
    assert [one["agreement"] for one in curve] == [None, 0.75, 1, 0]
    assert [one["tokens_with_vision"] for one in curve] == [LENGTH, 4, 8, 0]
    assert curve[1]["loss_interval_95"] == paired_drop(5, 0, 20)
    assert curve[1]["kl_nats_mean"] == pytest.approx(0.1)


def test_of_an_m_and_a_tag_the_earlier_one_wins() -> None:
    arms = {"m=4": 5, "m=16": 0, "until </A>": 0, "until </B>": 3}
    found = chosen(20, arms, at={"until </A>": 9, "until </B>": 2})
    assert found.withdrawal == {"policy": "mvw", "until": "</A>"}
    assert found.reason.startswith("With until </A>, 20 of 20 answers are right")
    found = chosen(20, {"m=4": 0, "until </A>": 0}, at={"until </A>": 9})
    assert found.withdrawal == {"policy": "mvw", "m": 4}


def test_a_tag_that_never_comes_withdraws_nothing() -> None:
    [sample] = asked(1, {"until </A>": 0})
    assert tokens_with_vision(sample, "until </A>") == LENGTH
    assert tokens_with_vision(sample, NO_IMAGE) == 0
    assert tokens_with_vision(sample, BASELINE) == LENGTH


def test_what_is_won_makes_up_for_what_is_lost() -> None:
    samples = asked(100, {"m=8": 10})
    for sample in samples[-10:]:
        sample["given"][BASELINE]["answer"] = "3"
    loss = loss_of(samples, "m=8")
    assert (loss.share, loss.interval_95) == (0, paired_drop(10, 10, 100))
    assert "90 of 100 answers are right, 90 without withdrawal: a loss of 0 %" in str(loss)


def test_without_references_the_baseline_stands_in() -> None:
    lost = {"m=1": 38, "m=16": 2, "m=64": 0}
    assert chosen(50, lost, 0.01, references=False).withdrawal == {"policy": "mvw", "m": 64}
    found = chosen(50, lost, 0.05, references=False)
    assert found.withdrawal == {"policy": "mvw", "m": 16}
    low, high = wilson(2, 50)
    assert found.reason.startswith(
        "With m=16, 48 of 50 answers come out as without withdrawal: a loss of 4 %, 95 % "
        f"interval {100 * low:.1f} % to {100 * high:.1f} %."
    )


def test_too_few_items_are_said_to_be_too_few() -> None:
    assert chosen(20, {"m=16": 0}).reason == (
        "With m=16, 20 of 20 answers are right, 20 without withdrawal: a loss of 0 %, 95 % "
        "interval -16.1 % to 16.1 %. On these items that is within 2 %; 20 are too few to show "
        "it for others: that takes 189 where nothing is lost, and more elsewhere."
    )
    # And with as many as it says, it shows.
    for items, shown in ((188, False), (189, True)):
        reason = chosen(items, {"m=16": 0}).reason
        assert ("All of the interval is within 2 %." in reason) is shown
        assert ("too few" in reason) is not shown
    assert "No number of items" in chosen(20, {"m=16": 0}, 0).reason


def test_reasons_why_nothing_is_chosen() -> None:
    found = chosen(20, {"m=4": 5, "m=8": 7, "until </A>": 6})
    assert found.withdrawal is None
    assert found.reason.startswith("With until </A>, 14 of 20 answers are right")
    assert found.reason.endswith("That is more than 2 %.")
    blind = chosen(100, {"m=1": 0, "m=16": 0}, blind_wrong=1)
    assert blind.withdrawal is None and "hardly need their images" in blind.reason
    samples = asked(10, {"m=4": 0})
    for sample in samples:
        sample["reference"] = "4"
    none = choose(samples, ["m=4"], 0.1)
    assert none.reason == "Without withdrawal none of 10 answers is right."


def test_without_the_control_that_is_said() -> None:
    found = chosen(100, {"m=16": 0}, blind_wrong=None)
    assert found.withdrawal == {"policy": "mvw", "m": 16}
    assert "no control without an image" in found.remarks[0]


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
    assert [*report["samples"][0]["arms"]] == arms and "given" not in report["samples"][0]
    policy = withdrawal_policy(resolve("./mvw.yaml", {}).profile)
    assert policy.describe() in ("at </CAPTION>", "m=64")  # the embedded model reads, then thinks
    assert [path.name for path in here.glob("*.svg")] == ["mvw.answers-by-m.svg"]
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
