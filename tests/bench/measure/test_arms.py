"""What is compared: the baseline first, then what was named, else the user's own profile."""

from __future__ import annotations

import pytest

from mvw_cli.bench.measure.arms import choose_arms
from mvw_cli.errors import PluginProblem


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
