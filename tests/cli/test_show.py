"""`mvw show`: merged values, each with its origin; the schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from processes import Ran

Run = Callable[..., Ran]


def test_values_with_their_origins(mvw: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVW_MODEL", "org/name")
    ran = mvw("show", "shapes", "--set", "withdrawal.m=16")
    rows = {line.split()[0]: line.split(None, 1)[1] for line in ran.out.splitlines()}
    assert (ran.code, ran.err) == (0, "")
    assert rows["withdrawal.m"].split(None, 1) == ["16", "flag: --set withdrawal.m"]
    assert rows["model"].split(None, 1) == ["org/name", "environment: MVW_MODEL"]
    assert rows["adapter"].split(None, 2)[:2] == ["shapes", "packaged:"]
    assert "shapes.yaml, line " in rows["adapter"]
    assert rows["generation.stop"].split()[0] == "[]"
    assert rows["revision"].split()[0] == "null"


def test_without_a_name_it_shows_what_would_run(mvw: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(mvw("show", "--json").out)["name"] == "shapes"
    monkeypatch.setenv("MVW_PROFILE", "hf")
    assert json.loads(mvw("show", "--json").out)["name"] == "hf"
    changed = mvw("show", "--json", "--set", "adapter=shapes", "--set", "model=embedded")
    assert json.loads(changed.out)["name"] == "hf"


def test_json(mvw: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model: org/name\nwithdrawal: {m: 4}\n")
    document = json.loads(mvw("show", "mine.yaml", "--json").out)
    assert list(document) == ["schema_version", "name", "values", "origins"]
    assert document["schema_version"] == 1
    assert document["values"]["withdrawal"] == {
        "policy": "mvw",
        "m": 4,
        **dict.fromkeys(("until", "min", "max")),
    }
    assert document["values"]["adapter"] == "hf"
    assert document["origins"]["withdrawal.m"] == {
        "kind": "profile",
        "where": "mine.yaml",
        "line": 2,
    }


def test_a_text_that_looks_like_something_else_is_quoted(mvw: Run) -> None:
    ran = mvw("show", "--set", r'prompt.template="a\nb {question}"')
    assert r'"a\nb {question}"' in ran.out
    ran = mvw(
        "show", "--set", 'prompt.template=" a   b {question}"', "--set", "prompt.question=a  b"
    )
    written = {line.split()[0]: line for line in ran.out.splitlines()}
    for key, value in {"prompt.template": " a   b {question}", "prompt.question": "a  b"}.items():
        cell = written[key].removeprefix(key).strip().rpartition("  ")[0].strip()
        assert yaml.safe_load(cell) == value


def test_schema_is_the_one_in_docs(mvw: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made by: MVW_LOAD_PLUGINS= mvw show --schema > docs/profile.schema.json"""
    monkeypatch.setenv("MVW_LOAD_PLUGINS", "")
    committed = Path(__file__).parents[2] / "docs" / "profile.schema.json"
    assert mvw("show", "--schema").out == committed.read_text(encoding="utf-8")


def test_a_policy_of_a_plugin_is_checked_by_its_own_fields(installed: Run, tmp_path: Path) -> None:
    for fields, message in (
        (
            "{share: 2.0, budget: 3}",
            "withdrawal: policy `fraction`: share must lie between 0 and 1",
        ),
        ("{share: 0.5}", "`withdrawal.budget`: Field required"),
        ("{budget: 1.5}", "`withdrawal.budget`: Input should be a valid integer, not 1.5"),
        (
            "{budget: 1, tags: [a, 2]}",
            "`withdrawal.tags[1]`: Input should be a valid string, not 2",
        ),
        ("{bugdet: 1}", "policy `fraction` has no field `bugdet`"),
    ):
        path = tmp_path / "x.yaml"
        path.write_text("withdrawal: " + fields.replace("{", "{policy: fraction, ") + "\n")
        ran = installed("good", "show", "x.yaml")
        assert ran.code == 2
        assert ran.err.splitlines()[0] == f"Error: x.yaml, line 1: {message}"
