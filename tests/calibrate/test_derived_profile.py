"""The profile that a search writes: the measured one, with a withdrawal of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mvw_cli.calibrate.profile import write_derived
from mvw_cli.profiles.resolution import resolve

ONLY_M = {"m": 32, **dict.fromkeys(("until", "min", "max"))}
REASON = "With m = 32, 90 of 100 answers are right. " * 5


def derive(name: str | None, flags: dict[str, object], target: Path) -> None:
    """Write the profile that withdraws at m = 32 and is else the one of that name."""
    write_derived(
        json.loads(json.dumps(resolve(name, flags).to_dict())),
        target,
        withdrawal={"policy": "mvw", "m": 32},
        description="m = 32, found on 100 items",
        reason=REASON,
    )


def test_the_profile_is_the_measured_one_with_this_m(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    flags = {
        "withdrawal.policy": "none",
        "dtype": "float32",
        "generation.temperature": 0.5,
        "generation.stop": ["</A>", "é: #"],
    }
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


def test_without_a_named_profile_flags_and_environment_are_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "mine.yaml"
    monkeypatch.setenv("MVW_MODEL", "some/model")
    derive(None, {"adapter": "kimi-vl", "device": "cpu"}, target)
    monkeypatch.delenv("MVW_MODEL")
    assert "extends" not in target.read_text("utf-8")
    written = resolve(str(target), {}).profile
    assert (written.adapter, written.model, written.device) == ("kimi-vl", "some/model", "cpu")
