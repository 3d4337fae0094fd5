"""Which layer wins, key by key, and what a resolved profile turns into."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mvw_cli.adapter import ModelSpec
from mvw_cli.engine.types import GenerationSettings
from mvw_cli.errors import UsageProblem
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.profiles.resolution import (
    Resolved,
    generation_settings,
    model_spec,
    parse_set,
    resolve,
)
from mvw_cli.profiles.withdrawal import withdrawal_policy

Write = Callable[[str, str], Path]


def env(**more: str) -> dict[str, str]:
    return {**os.environ, **more}


def value(resolved: Resolved, key: str) -> tuple[object, str]:
    return resolved.values()[key], resolved.origins[key].kind


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# Precedence, from the lowest layer to the highest.


def test_each_layer_hides_those_below(tmp_path: Path, user_profile: Write) -> None:
    key = "generation.max_new_tokens"
    assert value(resolve("qwen2.5-vl-7b", {}), key) == (512, "default")
    assert value(resolve("shapes", {}), key) == (256, "packaged")
    user_profile("shapes", "generation: {max_new_tokens: 11}\n")
    assert value(resolve("shapes", {}), key) == (11, "user")
    mine = write(tmp_path / "mine.yaml", "extends: shapes\ngeneration: {max_new_tokens: 12}\n")
    assert value(resolve(str(mine), {}), key) == (12, "profile")
    assert value(resolve(str(mine), {key: 14}), key) == (14, "flag")


def test_a_model_may_come_from_the_environment(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", "adapter: hf\nmodel: org/mine\n")
    variable = env(MVW_MODEL="org/theirs")
    assert value(resolve(str(mine), {}, variable), "model") == ("org/theirs", "environment")
    flags: dict[str, object] = {"model": "org/flag"}
    assert value(resolve(str(mine), flags, variable), "model") == ("org/flag", "flag")


def test_a_user_profile_leaves_the_packaged_keys_that_it_does_not_give(user_profile: Write) -> None:
    user_profile("shapes", "generation: {seed: 5}\n")
    resolved = resolve(None, {})
    assert value(resolved, "generation.seed") == (5, "user")
    assert value(resolved, "generation.max_new_tokens") == (256, "packaged")
    assert value(resolved, "adapter") == ("shapes", "packaged")


def test_null_hides_a_lower_value(tmp_path: Path) -> None:
    parent = write(tmp_path / "parent.yaml", "adapter: shapes\ngeneration: {top_p: 0.5}\n")
    child = write(tmp_path / "child.yaml", f"extends: {parent}\ngeneration: {{top_p: null}}\n")
    assert value(resolve(str(child), {}), "generation.top_p") == (None, "profile")


def test_origins_name_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.yaml", "# mine\nadapter: shapes\n\nprompt:\n  system: Be brief.\n")
    resolved = resolve("mine.yaml", {"device": "cpu", **parse_set(["dtype=float32"])})
    assert str(resolved.origins["prompt.system"]) == "mine.yaml, line 5"
    assert str(resolved.origins["device"]) == "--device"
    assert str(resolved.origins["dtype"]) == "--set dtype"
    assert str(resolved.origins["model"]) == "adapter shapes"
    assert set(resolved.origins) == set(resolved.values())


def test_flags_that_are_none_were_not_given() -> None:
    assert value(resolve("shapes", {"device": None}), "device") == ("auto", "default")


# Which profile, where none is named.


def test_without_anything_the_embedded_model_answers() -> None:
    resolved = resolve(None, {})
    assert (resolved.name, resolved.is_default) == ("shapes", True)
    assert model_spec(resolved.profile).model == "embedded"
    named = resolve("shapes", {})
    assert (named.is_default, named.values()) == (False, resolved.values())


def test_a_model_without_a_profile_takes_the_general_adapter() -> None:
    resolved = resolve(None, {"model": "org/name"})
    assert resolved.name is None
    assert value(resolved, "adapter") == ("hf", "default")
    assert withdrawal_policy(resolved.profile) == NoWithdrawal()
    by_variable = resolve(None, {}, env(MVW_MODEL="org/name"))
    assert value(by_variable, "model") == ("org/name", "environment")


def test_a_variable_names_the_profile_where_no_flag_does() -> None:
    variable = env(MVW_PROFILE="qwen2.5-vl-7b")
    assert resolve(None, {}, variable).name == "qwen2.5-vl-7b"
    assert resolve("shapes", {}, variable).name == "shapes"


def test_an_empty_variable_counts_as_unset() -> None:
    assert value(resolve(None, {}, env(MVW_MODEL="", MVW_PROFILE="")), "model")[1] == "default"


# extends


def test_a_chain_of_parents(tmp_path: Path, user_profile: Write) -> None:
    user_profile("base", "extends: shapes\ngeneration: {seed: 1, top_k: 1}\n")
    folder = tmp_path / "deep"
    folder.mkdir()
    write(folder / "middle.yaml", "extends: base\ngeneration: {seed: 2}\n")
    top = write(tmp_path / "top.yaml", "extends: deep/middle.yaml\ndescription: top\n")
    resolved = resolve(str(top), {})
    assert value(resolved, "description") == ("top", "profile")
    assert value(resolved, "generation.seed") == (2, "profile")
    assert value(resolved, "generation.top_k") == (1, "user")
    assert value(resolved, "generation.max_new_tokens") == (256, "packaged")
    assert "extends" not in resolved.to_dict()["values"]


def test_a_user_profile_may_extend_its_packaged_namesake(user_profile: Write) -> None:
    user_profile("shapes", "extends: shapes\ngeneration: {seed: 3}\n")
    assert value(resolve("shapes", {}), "generation.max_new_tokens") == (256, "packaged")


def test_a_circle_is_an_error(user_profile: Write) -> None:
    user_profile("a", "extends: b\n")
    user_profile("b", "extends: c\n")
    user_profile("c", "extends: b\n")
    with pytest.raises(UsageProblem, match="profile `b` extends itself") as caught:
        resolve("a", {})
    assert caught.value.cause == "the chain is a -> b -> c -> b"


def test_a_missing_parent_is_an_error(user_profile: Write) -> None:
    user_profile("mine", "extends: shaps\n")
    with pytest.raises(UsageProblem) as caught:
        resolve("mine", {})
    assert caught.value.message.endswith("mine.yaml, line 1: there is no profile `shaps`")
    assert caught.value.cause == "did you mean `shapes`?"


# Withdrawal


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, Mvw(until="</CAPTION>")),
        ({"withdrawal.m": 16}, Mvw(m=16)),
        ({"withdrawal.until": "</SUMMARY>"}, Mvw(until="</SUMMARY>")),
        ({"withdrawal.policy": "none"}, NoWithdrawal()),
        ({"withdrawal.policy": "mvw"}, Mvw(until="</CAPTION>")),
        ({"withdrawal.policy": "mvw", "withdrawal.m": 2}, Mvw(m=2)),
    ],
)
def test_withdrawal_flags_over_a_profile(flags: dict[str, object], expected: object) -> None:
    assert withdrawal_policy(resolve("shapes", flags).profile) == expected


def test_triggers_replace_each_other_in_every_layer(tmp_path: Path) -> None:
    child = write(tmp_path / "child.yaml", "extends: shapes\nwithdrawal: {m: 8}\n")
    assert withdrawal_policy(resolve(str(child), {}).profile) == Mvw(m=8)
    flags: dict[str, object] = {"withdrawal.until": "</REASONING>"}
    assert withdrawal_policy(resolve(str(child), flags).profile) == Mvw(until="</REASONING>")


def test_a_field_over_no_withdrawal_means_mvw() -> None:
    assert withdrawal_policy(resolve("hf", {"withdrawal.m": 4}).profile) == Mvw(m=4)
    assert withdrawal_policy(resolve(None, {"model": "a/b", "withdrawal.m": 4}).profile) == Mvw(m=4)


# Text from --set and the environment is read by the type of its key.


@pytest.mark.parametrize(
    ("pair", "key", "expected"),
    [
        ("revision=1234567", "revision", "1234567"),
        ("revision=null", "revision", None),
        ("prompt.system=", "prompt.system", None),
        ('prompt.system=""', "prompt.system", ""),
        ("prompt.system=a: b # c", "prompt.system", "a: b # c"),
        ("prompt.system=# not a comment", "prompt.system", "# not a comment"),
        ("generation.temperature=1e-1", "generation.temperature", 0.1),
        ("generation.stop=</END>", "generation.stop", ["</END>"]),
        ("generation.stop=[a, 'b c']", "generation.stop", ["a", "b c"]),
        ("withdrawal.until=12", "withdrawal.until", "12"),
        ("withdrawal.until=[END]", "withdrawal.until", "[END]"),
    ],
)
def test_set_reads_text_as_the_key_wants_it(pair: str, key: str, expected: object) -> None:
    assert resolve("shapes", parse_set([pair])).values()[key] == expected


# What comes out.


def test_every_key_reaches_the_model_and_the_engine(tmp_path: Path) -> None:
    path = write(
        tmp_path / "full.yaml",
        """
        adapter: hf
        model: org/name
        revision: abc
        dtype: bfloat16
        device: cuda:1
        attention: eager
        prompt: {system: S, template: "T {question}"}
        images: {max_pixels: 1000}
        withdrawal: {policy: mvw, m: 3}
        generation:
          max_new_tokens: 7
          temperature: 1
          top_p: 0.5
          top_k: 4
          repetition_penalty: 1.1
          seed: 9
          stop: END
        """,
    )
    profile = resolve(str(path), {}).profile
    assert profile.attention == "eager"
    assert model_spec(profile) == ModelSpec(
        "org/name",
        revision="abc",
        dtype="bfloat16",
        device="cuda:1",
        system="S",
        template="T {question}",
        max_pixels=1000,
    )
    assert generation_settings(profile) == GenerationSettings(7, 1.0, 0.5, 4, 1.1, 9, ("END",))


def test_the_defaults_are_those_of_the_engine_and_the_contract() -> None:
    profile = resolve(None, {"model": "org/name"}).profile
    assert model_spec(profile) == ModelSpec("org/name")
    assert generation_settings(profile) == GenerationSettings()


def test_a_model_is_asked_for_where_the_adapter_has_none() -> None:
    resolved = resolve("hf", {})
    with pytest.raises(UsageProblem, match="no model is named"):
        model_spec(resolved.profile)
