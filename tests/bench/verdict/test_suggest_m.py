"""Which m is suggested, what is said with it, and the profile that comes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mvw_cli.bench.documents import Answers, Comparison
from mvw_cli.bench.stats import paired_drop, summarise, wilson
from mvw_cli.bench.verdict.derived_profile import write_derived
from mvw_cli.bench.verdict.suggest import suggest
from mvw_cli.errors import UsageProblem
from mvw_cli.profiles.resolution import resolve

ONLY_M = {"m": 32, **dict.fromkeys(("until", "min", "max"))}


def arm(name: str, items: int, **figures: Any) -> Comparison:
    lost, won = figures.get("lost"), figures.get("won")
    if lost is not None and won is not None:
        figures["drop_interval_95"] = paired_drop(lost, won, items)
    return Comparison(
        name=name,
        items=items,
        identical=0,
        first_difference=None,
        agreement=None if name == "baseline" else 0.97,
        kl_nats=None,
        generated_tokens=summarise([100.0] * items),
        seconds=summarise([1.0] * items),
        accuracy_interval_95=None,
        p_value=None,
        **{"correct": None, **figures},
    )


def judged(items: int, right: int, lost: dict[str, int], won: int = 0) -> Answers:
    """Answers with references: how many each arm loses."""
    arms = [arm("baseline", items, correct=right)]
    arms += [
        arm(name, items, correct=right - gone + won, lost=gone, won=won)
        for name, gone in lost.items()
    ]
    return Answers(items, items, arms)


def free(items: int, same: dict[str, int]) -> Answers:
    """Answers without references: how many come out as those of the baseline."""
    arms = [arm("baseline", items), *(arm(name, items, same_answer=n) for name, n in same.items())]
    return Answers(items, 0, arms)


LOST = {"m=1": 60, "m=8": 30, "m=16": 4, "m=32": 1, "m=64": 0, "no image": 70}


def test_the_smallest_within_the_tolerance() -> None:
    answers = judged(100, 90, LOST)
    found = {tolerance: suggest(answers, tolerance)[0] for tolerance in (0, 0.01, 0.05, 0.4, 0.65)}
    assert found == {0: 64, 0.01: 32, 0.05: 16, 0.4: 8, 0.65: 1}


def test_one_that_passes_by_luck_is_none() -> None:
    """A smaller m that is within, below one that is not."""
    answers = judged(100, 90, {"m=4": 0, "m=8": 20, "m=16": 1, "m=32": 0, "no image": 70})
    assert suggest(answers, 0.02)[0] == 16
    assert suggest(judged(100, 90, {"m=4": 0, "m=32": 9, "no image": 70}), 0.02)[0] is None


def test_what_is_won_makes_up_for_what_is_lost() -> None:
    answers = judged(100, 50, {"m=8": 10, "no image": 40}, won=10)
    m, reason = suggest(answers, 0.01)
    assert m == 8
    low, high = paired_drop(10, 10, 100)
    assert f"a loss of 0 %, 95 % interval {100 * low:.1f} % to {100 * high:.1f} %" in reason


def test_too_few_items_are_said_to_be_too_few() -> None:
    m, reason = suggest(judged(20, 18, {"m=16": 0, "no image": 9}), 0.02)
    assert m == 16
    assert reason == (
        "With m = 16, 18 of 20 answers are right, 18 without withdrawal: a loss of 0 %, 95 % "
        "interval -16.1 % to 16.1 %. On these items that is within 2 %; 20 are too few to show "
        "it for others: that takes 189 where nothing is lost, and more elsewhere. Along the "
        "answers without withdrawal, 97 % of the next tokens stay the likeliest."
    )
    # And with as many as it says, it shows.
    for items, shown in ((188, False), (189, True)):
        m, reason = suggest(judged(items, 150, {"m=16": 0, "no image": 90}), 0.02)
        assert m == 16
        assert ("All of the interval is within 2 %." in reason) is shown
        assert ("too few" in reason) is not shown


def test_without_references_the_baseline_stands_in() -> None:
    answers = free(50, {"m=1": 12, "m=16": 48, "m=64": 50, "no image": 5})
    assert suggest(answers, 0.01)[0] == 64
    m, reason = suggest(answers, 0.05)
    assert m == 16
    low, high = wilson(2, 50)
    assert reason.startswith(
        "With m = 16, 48 of 50 answers come out as without withdrawal: a loss of 4 %, 95 % "
        f"interval {100 * low:.1f} % to {100 * high:.1f} %."
    )


def test_high_agreement_alone_suggests_nothing() -> None:
    """97 % of the next tokens stay the likeliest, and no answer comes out the same."""
    assert suggest(free(50, {"m=16": 0, "no image": 0}), 0.1)[0] is None


def test_questions_that_need_no_image_can_not_tell() -> None:
    m, reason = suggest(judged(100, 90, {"m=1": 0, "m=16": 0, "no image": 1}), 0.02)
    assert m is None
    assert reason == (
        "Without any image 89 of 100 answers are right, 90 without withdrawal: these questions "
        "hardly need their images, so they can't tell when an image may go."
    )
    assert suggest(free(100, {"m=1": 99, "no image": 99}), 0.02)[0] is None


def test_without_the_control_that_is_said() -> None:
    m, reason = suggest(judged(100, 90, {"m=16": 0}), 0.02)
    assert m == 16
    assert reason.endswith("no control without an image to show that the image is needed.")


def test_a_withdrawal_past_the_end_is_said_to_be_one() -> None:
    for m, said in ((99, False), (100, True), (512, True)):
        answers = judged(100, 90, {f"m={m}": 0, "no image": 70})
        assert ("Half of the answers end before that" in suggest(answers, 0.02)[1]) is said


def test_where_none_is_within_it_says_how_far_the_latest_is() -> None:
    m, reason = suggest(judged(100, 90, {"m=8": 30, "m=16": 20, "no image": 70}), 0.02)
    assert m is None
    assert reason.startswith("With m = 16, the latest that was tried, 70 of 100 answers are right")
    assert reason.endswith("That is more than 2 %.")


def test_nothing_to_go_by() -> None:
    assert suggest(Answers(0, 0, []), 0.1)[0] is None
    assert suggest(judged(10, 9, {"until </CAPTION>": 0, "no image": 9}), 0.1)[0] is None
    m, reason = suggest(judged(10, 0, {"m=4": 0, "no image": 0}), 0.1)
    assert m is None and reason == "Without withdrawal none of 10 answers is right."


# -- the profile ----------------------------------------------------------------------------------


REASON = "With m = 32, 90 of 100 answers are right. " * 5


def derive(name: str | None, flags: dict[str, object], target: Path) -> None:
    """Write the profile that withdraws at m = 32 and is else the one of that name."""
    write_derived(
        json.loads(json.dumps(resolve(name, flags).to_dict())),
        target,
        withdrawal={"policy": "mvw", "m": 32},
        description="m = 32, found on 100 items",
        reason=REASON,
        hint="mvw calibrate mvw --help",
    )


def test_the_profile_is_the_measured_one_with_this_m(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    flags = {"dtype": "float32", "generation.temperature": 0.5, "generation.stop": ["</A>", "é: #"]}
    derive("llava-cot", flags, target)
    written = resolve(str(target), {})
    before = resolve("llava-cot", flags)
    assert written.profile.withdrawal.model_dump() == {"policy": "mvw", **ONLY_M}
    for key, value in before.values().items():
        if key != "description" and not key.startswith("withdrawal."):
            assert written.values()[key] == value, key
    assert written.profile.description == "m = 32, found on 100 items"
    # It says what was found, and what it does not say itself comes from the parent.
    reason = " ".join(
        line.removeprefix("# ")
        for line in target.read_text("utf-8").splitlines()
        if line.startswith("#")
    )
    assert reason == REASON.strip()
    assert written.origins["model"].kind == "packaged"


def test_a_parent_named_by_its_path_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("extends: shapes\ngeneration: {max_new_tokens: 77}\n")
    (tmp_path / "deep").mkdir()
    for target in (Path("deep/mine.yaml"), Path("mine.yaml")):
        derive("./base.yaml", {}, target)
        monkeypatch.chdir(tmp_path / "deep")
        written = resolve(str(tmp_path / target), {}).profile
        assert written.generation.max_new_tokens == 77
        assert written.withdrawal.model_extra == ONLY_M
        monkeypatch.chdir(tmp_path)


def test_a_trigger_of_the_parent_does_not_live_on(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text('extends: shapes\nwithdrawal: {until: "</CAPTION>"}\n')
    target = tmp_path / "mine.yaml"
    derive(str(tmp_path / "base.yaml"), {}, target)
    written = resolve(str(target), {}).profile
    assert written.withdrawal.model_extra == ONLY_M


def test_without_a_named_profile_the_flags_are_the_profile(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    derive(None, {"adapter": "kimi-vl", "device": "cpu"}, target)
    assert "extends" not in target.read_text("utf-8")
    written = resolve(str(target), {}).profile
    expected = resolve(None, {"adapter": "kimi-vl", "device": "cpu"}).profile
    assert (written.adapter, written.model, written.device) == (
        expected.adapter,
        expected.model,
        "cpu",
    )


def test_the_measured_profile_is_not_replaced(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("extends: ./below.yaml\ngeneration: {max_new_tokens: 77}\n")
    below = tmp_path / "below.yaml"
    below.write_text("extends: shapes\ngeneration: {seed: 5}\n")
    for target in (base, below):
        before = target.read_text()
        with pytest.raises(UsageProblem, match="Cannot write") as raised:
            derive(str(base), {}, target)
        assert "would extend itself" in str(raised.value.cause)
        assert target.read_text() == before


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="Cannot write"):
        derive("shapes", {}, tmp_path / "missing" / "mine.yaml")
    assert not list(tmp_path.iterdir())
