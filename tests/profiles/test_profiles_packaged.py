"""The profiles that come with mvw: each valid, each explained, each known to editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mvw_cli.profiles.document import read
from mvw_cli.profiles.resolution import resolve
from mvw_cli.profiles.schema import SECTIONS, fields

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "profiles").glob("*.yaml"))
SCHEMA: dict[str, Any] = json.loads((ROOT / "docs" / "profile.schema.json").read_text())


def schema_accepts(value: object) -> bool:
    return jsonschema.Draft7Validator(SCHEMA).is_valid(value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_packaged_profile(path: Path) -> None:
    resolved = resolve(path.stem, {})
    assert resolved.profile.description
    assert schema_accepts(read(path.read_text(encoding="utf-8")).value)
    line = path.read_text(encoding="utf-8").splitlines()[0]
    marker = "# yaml-language-server: $schema="
    assert line.startswith(marker)
    assert (path.parent / line.removeprefix(marker)).resolve() == ROOT / "docs/profile.schema.json"


def test_the_packaged_profiles_are_listed_with_their_models() -> None:
    page = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
    for path in FILES:
        profile = resolve(path.stem, {}).profile
        row = next(line for line in page.splitlines() if line.startswith(f"| `{path.stem}` |"))
        if profile.adapter == "shapes" or profile.model is None:
            continue
        assert row.split("|")[2].split()[0] == profile.model
        # What has not been run says so wherever it is offered.
        assert row.endswith("| no |")
        assert "not run here with real weights" in (profile.description or "")


def test_the_general_profile_mentions_every_key() -> None:
    text = (ROOT / "profiles" / "hf.yaml").read_text(encoding="utf-8")
    for key in fields():
        if key != "extends":
            assert f"{key.rpartition('.')[2]}:" in text, key


def test_the_commented_keys_of_the_general_profile_are_valid(tmp_path: Path) -> None:
    lines = (ROOT / "profiles" / "hf.yaml").read_text(encoding="utf-8").splitlines()
    opened = [
        line.replace("# ", "", 1) if line.lstrip().startswith("# ") and ": " in line else line
        for line in lines[8:]
    ]
    path = tmp_path / "opened.yaml"
    text = "\n".join(opened).replace("policy: none", "policy: mvw")
    path.write_text(text, encoding="utf-8")
    profile = resolve(str(path), {}).profile
    assert profile.model == "ORG/NAME"
    assert profile.generation.stop == ["</CONCLUSION>"]
    given = {key: value for _, one in profile.withdrawal.steps for key, value in one.items()}
    assert (given["m"], given["until"]) == (16, "</CAPTION>")


def test_every_key_is_described() -> None:
    for key, info in fields().items():
        assert info.description, key
    for section in SECTIONS.values():
        assert section.__doc__


@pytest.mark.parametrize(
    "text",
    [
        "withdrawal: {policy: mvw, m: 3}",
        "withdrawal: {m: 3}",
        "withdrawal: {policy: someone-elses, rank: 3}",
        "withdrawal: {policy: 'vtw:layer=12+mvw:m=3'}",
        "withdrawal: [{policy: vtw, layer: 12}, {policy: mvw, m: 3}]",
        "withdrawal: {policy: [{policy: vtw, layer: 12}, {policy: mvw, m: 3}]}",
        "generation: {stop: END}",
        "generation:",
        "device: cuda:3",
    ],
)
def test_the_schema_accepts(text: str) -> None:
    assert schema_accepts(read(text).value)


@pytest.mark.parametrize(
    "text",
    [
        "withdrawal: []",
        "withdrawal: [{m: 3}]",
        "withdrawal: [mvw]",
        "witdrawal: {m: 3}",
        "generation: {temperature: -1}",
        "device: gpu",
        "prompt: {template: no place for it}",
    ],
)
def test_the_schema_refuses(text: str) -> None:
    assert not schema_accepts(read(text).value)
