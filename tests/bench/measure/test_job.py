"""A job as plain data: through JSON, and into the settings that runs are made with."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import pytest

from mvw_cli.bench.measure.job import (
    ArmSpec,
    ItemSpec,
    Job,
    from_json,
    policy_of,
    profile_of,
    settings_of,
    to_json,
)
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.profiles.resolution import resolve

NEVER = ArmSpec("baseline", {"policy": "none"})
LATER = ArmSpec("m=16", {"policy": "mvw", "m": 16, "until": None})
ITEMS = tuple(ItemSpec((f"{name}.png",), f"what is in {name}?", None) for name in "abc")


def job(**given: Any) -> Job:
    values = resolve(None, {"generation.stop": ["."], "generation.temperature": 0.7}, env={})
    return Job(**{"profile": values.to_dict()["values"], "arms": (NEVER, LATER), "items": ITEMS,
                  **given})  # fmt: skip


def test_a_job_comes_back_from_json_and_from_another_process() -> None:
    whole = job(batch=4, mode="natural", source="folder", random_weights=True, min_time_s=0.5)
    assert from_json(to_json(whole)) == whole
    assert from_json(json.dumps(json.loads(to_json(whole)))) == whole
    assert pickle.loads(pickle.dumps(whole)) == whole
    with pytest.raises(ValueError):
        from_json('{"arms": []}')


def test_arms_are_the_policies_that_they_name() -> None:
    whole = job()
    assert [policy_of(whole, arm) for arm in whole.arms] == [NoWithdrawal(), Mvw(m=16)]
    assert profile_of(whole).generation.temperature == 0.7


def test_a_fixed_length_ends_nowhere_else_and_a_natural_one_as_the_profile_says() -> None:
    fixed = settings_of(job(new_tokens=40, seed=3))
    assert (fixed.max_new_tokens, fixed.ignore_eos, fixed.stop, fixed.seed) == (40, True, (), 3)
    assert fixed.temperature == 0.7  # chosen as the user's tokens are
    natural = settings_of(job(new_tokens=40, mode="natural"))
    assert (natural.max_new_tokens, natural.ignore_eos, natural.stop) == (40, False, (".",))


def test_batches_go_round_the_items() -> None:
    whole = job(batch=2)
    turns = [[item.images[0] for item in whole.turn(number)] for number in range(3)]
    assert turns == [["a.png", "b.png"], ["c.png", "a.png"], ["b.png", "c.png"]]
    assert [item.images[0] for item in job(batch=5).turn(0)] == [
        "a.png", "b.png", "c.png", "a.png", "b.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [{"arms": ()}, {"items": ()}, {"arms": (NEVER, NEVER)}, {"batch": 0}, {"runs": 0},
     {"new_tokens": 1}, {"warm_up": -1}, {"min_time_s": -1.0}],
)  # fmt: skip
def test_what_can_t_be_measured_is_no_job(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(job(), **wrong)
