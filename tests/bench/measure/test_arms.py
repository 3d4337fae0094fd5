"""What is compared: the baseline first, then what was named, else the user's own profile."""

from __future__ import annotations

from typing import Any

import pytest
from planted import arm_spec

from mvw_cli.bench.measure.arms import Job, choose_arms
from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.errors import PluginProblem
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.profiles.resolution import resolve


def named(*args: object, **more: object) -> dict[str, tuple[str, object, object]]:
    found = {}
    for arm in choose_arms(*args, **more):  # type: ignore[arg-type]
        fields = arm.profile.withdrawal.model_extra or {}
        found[arm.name] = (arm.profile.withdrawal.policy, fields.get("m"), fields.get("until"))
    return found


def test_the_profiles_own_withdrawal_beside_none() -> None:
    assert named(None, {}) == {
        "baseline": ("none", None, None),
        "at </CAPTION>": ("mvw", None, "</CAPTION>"),
    }


def test_a_profile_without_withdrawal_gets_the_usual_moment() -> None:
    assert list(named("hf", {"model": "org/name"})) == ["baseline", "m=16"]


def test_moments_replace_what_the_profile_has() -> None:
    assert named("shapes", {}, moments=(4, "never", 8), until=("</SUMMARY>",)) == {
        "baseline": ("none", None, None),
        "m=4": ("mvw", 4, None),
        "m=8": ("mvw", 8, None),
        "until </SUMMARY>": ("mvw", None, "</SUMMARY>"),
    }


def test_never_alone_is_a_measurement_of_the_baseline() -> None:
    assert list(named("shapes", {}, moments=("never",))) == ["baseline"]


def test_other_flags_hold_for_every_arm() -> None:
    arms = choose_arms("shapes", {"generation.max_new_tokens": 7}, moments=(4,))
    assert {arm.profile.generation.max_new_tokens for arm in arms} == {7}


def test_a_policy_that_there_is_not() -> None:
    with pytest.raises(PluginProblem, match="nowhere"):
        choose_arms("shapes", {}, policies=("nowhere",))


# -- a job ----------------------------------------------------------------------------------


BASELINE, LATER = (
    arm_spec("baseline", {"policy": "none"}),
    arm_spec("m=16", {"policy": "mvw", "m": 16}),
)
ITEMS = tuple(ItemSpec((f"{name}.png",), f"what is in {name}?", None) for name in "abc")


def job(**given: Any) -> Job:
    values = resolve(None, {"generation.stop": ["."], "generation.temperature": 0.7}, env={})
    return Job(**{"profile": values.profile, "arms": (BASELINE, LATER), "items": ITEMS,
                  **given})  # fmt: skip


def test_arms_are_the_policies_that_they_name() -> None:
    whole = job()
    assert [arm.policy for arm in whole.arms] == [NoWithdrawal(), Mvw(m=16)]


def test_a_fixed_length_ends_nowhere_else_and_a_natural_one_as_the_profile_says() -> None:
    fixed = job(new_tokens=40, seed=3).settings()
    assert (fixed.max_new_tokens, fixed.ignore_eos, fixed.stop, fixed.seed) == (40, True, (), 3)
    assert fixed.temperature == 0.7  # chosen as the user's tokens are
    natural = job(new_tokens=40, mode="natural").settings()
    assert (natural.max_new_tokens, natural.ignore_eos, natural.stop) == (40, False, (".",))


def test_batches_go_round_the_items() -> None:
    whole = job(batch=2)
    turns = [[item.images[0] for item in whole.turn(number)] for number in range(3)]
    assert turns == [["a.png", "b.png"], ["c.png", "a.png"], ["b.png", "c.png"]]
    assert [item.images[0] for item in job(batch=5).turn(0)] == [
        "a.png", "b.png", "c.png", "a.png", "b.png",
    ]  # fmt: skip
