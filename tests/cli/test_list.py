"""`mvw list`: adapters, policies, profiles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Ran, own_adapters

Run = Callable[..., Ran]


def test_adapters_as_a_table(mvw: Run) -> None:
    ran = mvw("list", "adapters")
    header, *rows = ran.out.splitlines()
    assert (ran.code, ran.err) == (0, "")
    assert header.split() == ["NAME", "SUMMARY", "DISTRIBUTION", "STATUS"]
    assert [row.split()[0] for row in rows] == [*own_adapters()]
    assert all(row.split()[-2:] == ["mvw", "ok"] for row in rows)


@pytest.mark.parametrize("what", ["adapters", "policies", "profiles"])
def test_json_is_one_document(mvw: Run, what: str) -> None:
    ran = mvw("list", what, "--json")
    document = json.loads(ran.out)
    assert list(document) == ["schema_version", what]
    assert document["schema_version"] == 1
    assert all(record["status"] == "ok" for record in document[what])


def test_policies(mvw: Run) -> None:
    document = json.loads(mvw("list", "policies", "--json").out)
    names = [record["name"] for record in document["policies"]]
    assert (names[0], names[-1]) == ("mvw", "none")
    assert {"vtw", "fastv", "mass", "look-back"} < set(names)


def test_profiles_say_whose_they_are(mvw: Run, user_profile: Callable[[str, str], Path]) -> None:
    user_profile("mine", "extends: qwen2.5-vl-7b\ndescription: Mine.\n")
    user_profile("shapes", "description: Changed.\n")
    document = json.loads(mvw("list", "profiles", "--json").out)
    found = {record["name"]: record for record in document["profiles"]}
    assert found["mine"]["adapter"] == "hf"
    assert found["mine"]["model"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert (found["mine"]["description"], found["mine"]["origin"]) == ("Mine.", "user")
    assert found["shapes"]["origin"] == "user over mvw"
    assert (found["shapes"]["description"], found["shapes"]["adapter"]) == ("Changed.", "shapes")


def test_a_broken_profile_does_not_hide_the_others(
    mvw: Run, user_profile: Callable[[str, str], Path]
) -> None:
    user_profile("bad", "adapter: [\n")
    user_profile("elsewhere", "adapter: not-installed\n")
    ran = mvw("list", "profiles")
    assert ran.code == 0
    rows = {line.split()[0]: line for line in ran.out.splitlines()}
    assert "broken: " in rows["bad"] and "bad.yaml, line " in rows["bad"]
    assert rows["shapes"].split()[-1] == rows["elsewhere"].split()[-1] == "ok"
