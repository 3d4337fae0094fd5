"""`mvw calibrate mass`: what follows from recorded masses is what the policy does, and the rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from processes import Ran
from sessions import asked, family, tiny

from mvw_cli.bench.quality.divergence import Divergence, divergences
from mvw_cli.calibrate import mass as method
from mvw_cli.calibrate.mass import (
    candidates,
    curve,
    qualifying,
    record,
    refusal,
    withdrawn_after,
)
from mvw_cli.engine.types import Finished, Withdrawn
from mvw_cli.policies.mass import Mass
from mvw_cli.policies.mvw import Mvw
from mvw_cli.profiles.resolution import resolve
from mvw_cli.profiles.withdrawal import withdrawal_policy

LIKE = Mass(threshold=1.0, patience=2, smoothing=0.5)


def nothing() -> None:
    return None


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "kimi_text_stack", "mllama"])
def test_the_policy_withdraws_where_the_masses_say(name: str) -> None:
    session, request = family(name)
    session.loaded.model.generation_config.eos_token_id = None  # a long answer, in each family
    found, mass = record(session, request, LIKE, nothing)
    assert len(mass) == len(found.token_ids) - 1
    # As without any policy that watches.
    *_, last = session.run([request])
    assert isinstance(last, Finished) and last.token_ids == found.token_ids
    steps = set()
    for threshold in candidates([one for one in mass if one is not None]):
        policy = replace(LIKE, threshold=threshold)
        events = list(session.run([replace(request, policy=policy, forced=found.token_ids)]))
        really = next((one.step for one in events if isinstance(one, Withdrawn)), None)
        assert withdrawn_after(policy, mass) == really
        steps.add(really)
    assert len(steps) > 1


def test_a_withdrawal_there_changes_what_the_policy_changes() -> None:
    session = tiny("hf")
    request = asked(session)
    found, mass = record(session, request, LIKE, nothing)
    threshold = candidates([one for one in mass if one is not None])[-2]
    policy = replace(LIKE, threshold=threshold)
    step = withdrawn_after(policy, mass)
    assert step is not None
    arms = [replace(request, policy=one) for one in (Mvw(m=step), policy)]
    counted, watched = divergences(session, request, arms, found.token_ids)
    assert counted == watched


def test_candidates_are_quantiles() -> None:
    assert candidates([0.1, 0.3, 0.2], count=1) == [0.2]
    assert len(candidates([value / 100 for value in range(1, 100)])) == 12
    assert candidates([0.4]) == [0.4]


def changed(wrong: int, step: int | None) -> Divergence:
    """What a withdrawal after so many of ten tokens changes: the first `wrong` of them."""
    return Divergence([0.5] * 10, [place >= wrong for place in range(10)], step)


def test_the_curve_sums_up_each_threshold() -> None:
    found = [
        {"0.05": changed(0, None), "0.55": changed(0, 6), "0.85": changed(0, 3)},
        {"0.05": changed(0, None), "0.55": changed(1, 6), "0.85": changed(4, 3)},
    ]
    points = curve(found, [10, 10], [0.05, 0.55, 0.85], 0.05)
    assert [one["threshold"] for one in points] == [0.05, 0.55, 0.85]
    assert [one["withdrawn"] for one in points] == [0, 1, 1]
    assert [one["tokens_with_vision"] for one in points] == [10, 6, 3]
    assert [one["agreement"] for one in points] == [1, 0.95, 0.8]
    assert [one["within"] for one in points] == [True, True, False]
    assert [one["threshold"] for one in qualifying(points)] == [0.55]
    assert refusal(points, 0.5, 0.05) is None


def point(threshold: float, agreement: float, withdrawn: float = 1.0) -> dict[str, Any]:
    return {
        "threshold": threshold,
        "withdrawn": withdrawn,
        "agreement": agreement,
        "within": agreement >= 0.98,
    }


def test_a_threshold_above_one_that_fails_does_not_qualify() -> None:
    points = [point(0.1, 1.0), point(0.2, 0.9), point(0.3, 0.99)]
    assert [one["threshold"] for one in qualifying(points)] == [0.1]


def test_reasons_to_refuse() -> None:
    low = refusal([point(0.1, 0.9)], 0.5, 0.02)
    assert low is not None and "the lowest that was tried" in low and "90 %" in low
    blind = refusal([point(0.1, 1.0)], 0.99, 0.02)
    assert blind is not None and "hardly need their images" in blind
    idle = refusal([point(0.1, 1.0, withdrawn=0)], 0.5, 0.02)
    assert idle is not None and "withdraws in any answer" in idle


# -- the command ------------------------------------------------------------------------------

Run = Callable[..., Ran]
WORDS = ("calibrate", "mass", "--limit", "2", "--thresholds", "0.2,0.3,0.9")


def test_the_command_writes_a_profile_that_withdraws(
    mvw: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = mvw(*WORDS)
    assert ran.code == 0, ran.err
    report = json.loads((here / "mass.report.json").read_text())
    assert [one["threshold"] for one in report["outcome"]["curve"]] == [0.2, 0.3, 0.9]
    assert [one["within"] for one in report["outcome"]["curve"]] == [True, True, False]
    assert "a loss of 0 %" in report["outcome"]["reason"]
    policy = withdrawal_policy(resolve("./mass.yaml", {}).profile)
    assert policy == Mass(threshold=0.3, patience=4, smoothing=0.3)
    assert [path.name for path in here.glob("*.svg")] == ["mass.agreement-by-threshold.svg"]
    # A second run finds everything in the log, and runs no model.
    from mvw_cli.session import Session

    def never(*args: Any, **more: Any) -> Any:
        raise AssertionError("the model ran again")

    monkeypatch.setattr(Session, "run", never)
    monkeypatch.setattr(Session, "serving", never)
    assert mvw(*WORDS).code == 0
    again = json.loads((here / "mass.report.json").read_text())
    assert again["samples"] == report["samples"] and again["outcome"] == report["outcome"]


def test_answers_decide_where_next_tokens_do_not(
    mvw: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a tolerance that lets every token go, answers still have to be right."""
    plain = method.answer

    def spoiled(run: Any, item: Any, policy: Mass) -> Any:
        kept = plain(run, item, policy)
        return {**kept, "answer": "nonsense"} if policy.threshold > 0.25 else kept

    monkeypatch.setattr(method, "answer", spoiled)
    ran = mvw(*WORDS)
    assert ran.code == 0 and "A threshold of 0.3 is too high" in ran.err
    policy = withdrawal_policy(resolve("./mass.yaml", {}).profile)
    assert policy == Mass(threshold=0.2, patience=4, smoothing=0.3)


def test_no_threshold_keeps_the_answers(mvw: Run, here: Path) -> None:
    ran = mvw("calibrate", "mass", "--limit", "2", "--thresholds", "0.9")
    assert ran.code == 1 and "the lowest that was tried" in ran.err
    assert not (here / "mass.yaml").exists() and (here / "mass.report.json").exists()


def test_answers_without_any_mass_are_refused(
    mvw: Run, here: Path, check_hint: Callable[[str], None]
) -> None:
    ran = mvw("calibrate", "mass", "--limit", "2", "--max-new-tokens", "1")
    assert ran.code == 2 and "No attention mass was seen" in ran.err
    check_hint(ran.err.splitlines()[-1].removeprefix("Hint: "))
