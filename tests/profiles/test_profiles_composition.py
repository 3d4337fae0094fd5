"""Several withdrawal policies in one profile: every form, every layer, and what is refused."""

from __future__ import annotations

import json
import pickle
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_policies
import pytest
from processes import Ran

from mvw_cli.batch.store.fingerprint import describe_difference, fingerprint
from mvw_cli.bench.measure.arms import Job, choose_arms
from mvw_cli.bench.measure.items import ItemSpec
from mvw_cli.doctor.findings import again
from mvw_cli.errors import UsageProblem
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policies.stack import Stack
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.profiles.resolution import Resolved, parse_set, resolve
from mvw_cli.profiles.schema import Profile
from mvw_cli.profiles.withdrawal import withdrawal_policy

LINE = "layered:layer=2+mvw:m=16"


@pytest.fixture(autouse=True)
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_policies.install(tmp_path / "site", monkeypatch)
    monkeypatch.chdir(tmp_path)


def written(text: str, name: str = "x.yaml") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def policy(profile: str | None, flags: dict[str, object]) -> WithdrawalPolicy:
    resolved = resolve(profile, flags)
    assert withdrawal_policy(resolved.profile) == resolved.policy
    return resolved.policy


def said(found: WithdrawalPolicy) -> str:
    return found.describe()


def origin(resolved: Resolved, key: str) -> str:
    return str(resolved.origins[key])


def complaint(profile: str | None, flags: dict[str, object]) -> tuple[str, str]:
    with pytest.raises(UsageProblem) as caught:
        policy(profile, flags)
    return caught.value.message, caught.value.cause or ""


# Every form says the same.

FORMS = {
    "a list": "withdrawal:\n  - policy: layered\n    layer: 2\n  - {policy: mvw, m: 16}\n",
    "a list below policy": "withdrawal: {policy: [{policy: layered, layer: 2}, "
    "{policy: mvw, m: 16}]}\n",
    "a line": f"withdrawal: {{policy: '{LINE}'}}\n",
    "a list of short forms": "withdrawal: [{policy: 'layered:layer=2'}, {policy: 'mvw:m=16'}]\n",
}


def check_stack(found: WithdrawalPolicy) -> None:
    assert isinstance(found, Stack)
    first, second = found.policies
    assert (first.name, vars(first)) == ("layered", {"layer": 2, "tags": (), "share": 1.0})
    assert second == Mvw(m=16)


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_file(form: str) -> None:
    check_stack(policy(written(FORMS[form]), {}))


def test_forms_of_flags() -> None:
    check_stack(policy("shapes", {"withdrawal.policy": LINE}))
    check_stack(policy("shapes", dict(parse_set([f"withdrawal.policy={LINE}"]))))
    listed = '[{"policy": "layered", "layer": 2}, {"policy": "mvw", "m": 16}]'
    check_stack(policy("shapes", dict(parse_set([f"withdrawal.policy={listed}"]))))


def test_one_policy_in_any_form_is_the_plain_single_one() -> None:
    plain = resolve("shapes", {"withdrawal.m": 16}).to_dict()["values"]["withdrawal"]
    assert plain["policy"] == "mvw"
    file = written("extends: shapes\nwithdrawal: [{policy: mvw, m: 16}]\n")
    for other in (resolve(file, {}), resolve("shapes", {"withdrawal.policy": "mvw:m=16"})):
        assert other.to_dict()["values"]["withdrawal"] == plain


def test_values_are_read_by_the_type_of_their_field() -> None:
    line = "layered:layer=2,tags=[a, 'b+c'],share=5e-1+mvw:until=12"
    found = policy("shapes", {"withdrawal.policy": line})
    assert isinstance(found, Stack)
    assert vars(found.policies[0]) == {"layer": 2, "tags": ("a", "b+c"), "share": 0.5}
    assert found.policies[1] == Mvw(until="12")


# Which layer wins.

STACKED = FORMS["a list"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"withdrawal.m": 32}, "from layer 2, then after 32 tokens"),
        ({"withdrawal.until": "</X>"}, "from layer 2, then at </X>"),
        ({"withdrawal.layer": 5}, "from layer 5, then after 16 tokens"),
        ({"withdrawal.policy": "mvw:m=3"}, "after 3 tokens"),
        ({"withdrawal.policy": "layered:layer=3"}, "from layer 3"),
        ({"withdrawal.policy": "none"}, "no withdrawal"),
        ({"withdrawal.policy": "deeper:layer=1+mvw:m=8"}, "from layer 1, then after 8 tokens"),
        (
            {"withdrawal.policy": "layered:layer=7+mvw", "withdrawal.m": 9},
            "from layer 7, then after 9 tokens",
        ),
    ],
)
def test_flags_over_several_policies(flags: dict[str, object], expected: str) -> None:
    assert said(policy(written(STACKED), flags)) == expected


def test_every_layer_may_give_a_field_of_the_policies_below() -> None:
    written(STACKED, "parent.yaml")
    child = written("extends: ./parent.yaml\nwithdrawal: {until: </X>}\n")
    assert said(policy(child, {})) == "from layer 2, then at </X>"
    assert said(policy(child, {"withdrawal.m": 4})) == "from layer 2, then after 4 tokens"
    both: dict[str, object] = {"withdrawal.m": 4, "withdrawal.layer": 1}
    assert said(policy(child, both)) == "from layer 1, then after 4 tokens"


def test_a_layer_that_names_policies_replaces_those_below_with_their_fields() -> None:
    written("withdrawal: {policy: layered, layer: 2, share: 0.5}\n", "parent.yaml")
    child = written("extends: ./parent.yaml\nwithdrawal: {policy: deeper}\n")
    assert complaint(child, {})[0] == "x.yaml, line 2: `withdrawal.layer`: Field required"
    over = policy("./parent.yaml", {"withdrawal.policy": "layered+mvw:m=3", "withdrawal.layer": 4})
    assert isinstance(over, Stack)
    assert vars(over.policies[0]) == {"layer": 4, "tags": (), "share": 1.0}


def test_what_was_replaced_does_not_come_back() -> None:
    written("withdrawal: {policy: mvw, until: </X>}\n", "low.yaml")
    written("extends: ./low.yaml\nwithdrawal: {policy: layered, layer: 2}\n", "middle.yaml")
    high = written("extends: ./middle.yaml\nwithdrawal: {policy: mvw}\n")
    assert "give m" in complaint(high, {})[0]


def test_a_field_without_a_policy_waits_for_the_one_that_has_it() -> None:
    written("withdrawal: {layer: 3}\n", "parent.yaml")
    child = written("extends: ./parent.yaml\nwithdrawal: {policy: layered}\n")
    assert said(policy(child, {})) == "from layer 3"
    written("withdrawal: {m: 3}\n", "parent.yaml")
    assert resolve(child, {"withdrawal.policy": "none"}).policy == NoWithdrawal()


# What is refused.


LAYERED = "withdrawal:\n  - {policy: layered, layer: 2}\n  - policy: mvw\n"
NOT_ONE = "line 1: `withdrawal`: not a policy with its fields"
REFUSED = {
    LAYERED + "    mm: 3\n": "line 4: policy `mvw` has no field `mm`",
    LAYERED + "    m: many\n": "line 4: `withdrawal.policy[1].m`: Input should be a valid integer",
    LAYERED + "    m: 0\n": "line 4: withdrawal: policy `mvw`: m must be 1 or more",
    LAYERED + "    m: 1\n  - layer: 3\n": "line 5: `withdrawal`: not a policy with its fields",
    "withdrawal:\n  - policy: 'mvw:m=2'\n    m: 3\n": "line 2 and x.yaml, line 3: `m` is given",
    "withdrawal: []\n": NOT_ONE,
    "withdrawal: [mvw]\n": NOT_ONE,
    "withdrawal: mvw\n": NOT_ONE,
    "withdrawal: {policy: 3}\n": NOT_ONE,
    "withdrawal: {policy: 'mvw:m=3+mvw:m=4'}\n": "line 1: withdrawal: mvw is given twice",
    "withdrawal: {policy: 'none+mvw:m=4'}\n": "line 1: withdrawal: none keeps every vision token",
    "withdrawal: {policy: again}\n": "line 1: withdrawal: again has nothing to bring back",
    "withdrawal: {policy: 'again+mvw:m=4'}\n": "line 1: withdrawal: again has nothing to bring",
    "withdrawal: {until: [a, 3]}\n": "line 1: `withdrawal.until[1]`: Input should be a valid s",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_file_is_refused(text: str, check_hint: Callable[[str], None]) -> None:
    with pytest.raises(UsageProblem) as caught:
        resolve(written(text), {})
    assert caught.value.message.startswith(f"x.yaml, {REFUSED[text]}")
    assert caught.value.cause
    check_hint(caught.value.hint or "")


@pytest.mark.parametrize(
    ("line", "flag", "message", "cause"),
    [
        (
            "layered:layer=1+deeper:layer=2",
            "layer",
            "`layer` is a field of layered and of deeper",
            "give it with its policy, as layered:layer=VALUE+deeper:layer=VALUE",
        ),
        (LINE, "m", "--policy and --m: `m` is given twice", "as a field of a policy"),
        ("mvw:m=2", "m", "--policy and --m: `m` is given twice", "as a field of a policy"),
        (
            "layered:layer=1+again",
            "m",
            "--m: no policy has a field `m`",
            "`layered` has layer, tags, share; `again` has steps, on",
        ),
        (
            "layered:layr=1+mvw",
            "m",
            "--policy: policy `layered` has no field `layr`",
            "did you mean `layer`?",
        ),
    ],
)
def test_flags_are_refused(line: str, flag: str, message: str, cause: str) -> None:
    found = complaint("shapes", {"withdrawal.policy": line, f"withdrawal.{flag}": 3})
    assert message in found[0]
    assert cause in found[1]


def test_a_profile_that_was_never_resolved_is_refused_as_well() -> None:
    profile = Profile.model_validate({"withdrawal": {"policy": "again"}})
    with pytest.raises(UsageProblem, match="again has nothing to bring back"):
        withdrawal_policy(profile)


# Where the policies are shown, hashed and sent.


def test_a_resolved_profile_is_itself_a_profile() -> None:
    first = resolve("shapes", {"withdrawal.policy": LINE}).to_dict()
    assert [one["policy"] for one in first["values"]["withdrawal"]["policy"]] == ["layered", "mvw"]
    assert list(first["values"]["withdrawal"]) == ["policy"]
    back = resolve(written(json.dumps(first["values"])), {})
    assert back.to_dict()["values"] == first["values"]
    check_stack(withdrawal_policy(back.profile))


def test_the_origin_of_several_policies() -> None:
    assert origin(resolve(written(STACKED), {}), "withdrawal.policy") == "x.yaml, line 2"
    changed = resolve(written(STACKED), {"withdrawal.m": 32})
    assert origin(changed, "withdrawal.policy") == "--m"


def test_show_writes_what_yaml_reads(mvw: Callable[..., Ran]) -> None:
    ran = mvw("show", written(STACKED), "--set", "withdrawal.m=32")
    rows = {line.split()[0]: line for line in ran.out.splitlines()}
    value = rows["withdrawal.policy"].split(None, 1)[1].rsplit("flag:", 1)[0]
    assert said(policy(written(f"withdrawal: {value}\n", "again.yaml"), {})) == (
        "from layer 2, then after 32 tokens"
    )


def test_the_fingerprint_tells_orders_fields_and_distributions() -> None:
    def taken(line: str) -> Any:
        return fingerprint(resolve("shapes", {"withdrawal.policy": line}), random_weights=False)

    one, other = taken(LINE), taken("mvw:m=16+layered:layer=2")
    assert one.short == taken(LINE).short
    assert len({one.short, other.short, taken("layered:layer=2+mvw:m=8").short}) == 3
    assert one.policy_version.startswith("mvw-fake 1.2, mvw ")
    assert describe_difference(taken("mvw:m=16").difference(one)).startswith(
        'withdrawal.policy: mvw before, [{"policy": "layered", "layer": 2'
    )


def test_arms_of_a_measurement() -> None:
    names = (LINE, "mvw:m=16", "none", "layered:layer=3")
    arms = choose_arms("shapes", {}, policies=names)
    assert [arm.name for arm in arms] == ["baseline", LINE, "mvw:m=16", "layered:layer=3"]
    job = Job(
        profile=arms[0].profile,
        arms=tuple(arms),
        items=(ItemSpec(("a.png",), "?"),),
    )
    sent = pickle.loads(pickle.dumps(job))
    check_stack(sent.arms[1].policy)
    assert [said(arm.policy) for arm in sent.arms] == [
        "no withdrawal",
        "from layer 2, then after 16 tokens",
        "after 16 tokens",
        "from layer 3",
    ]
    own = choose_arms(written(STACKED), {"model": "org/name"})
    assert [arm.name for arm in own] == ["baseline", "from layer 2, then after 16 tokens"]


def test_doctor_repeats_what_flags_gave() -> None:
    found = resolve(written("extends: shapes\n" + STACKED), {"withdrawal.m": 32})
    given = found.by_flag()
    assert list(given) == ["withdrawal.policy"]
    words = shlex.split(again(found, {}))
    pair = words[words.index("--set") + 1]
    assert said(policy("shapes", dict(parse_set([pair])))) == "from layer 2, then after 32 tokens"
