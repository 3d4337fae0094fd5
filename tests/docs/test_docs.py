"""Docs and code say the same: generated parts, options, hooks, exit codes, keys, JSON."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from broken import write_checkpoint
from click.testing import CliRunner
from docs_pages import DOCS, EXAMPLE, ROOT, dotted, first_cells, generator, text_of
from PIL import Image
from processes import Ran

from mvw_cli import hookspecs
from mvw_cli.cli import cli
from mvw_cli.errors import ExitCode

Run = Callable[..., Ran]


def test_generated_parts_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, DOCS / "generate.py", "--check"], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


@pytest.fixture
def generate() -> Iterator[Any]:
    with generator() as module:
        yield module


def test_check_names_what_is_stale_and_writing_mends_it(
    generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    page = tmp_path / "README.md"
    start, end = "<!-- generated: exit codes -->", "<!-- end generated -->"
    page.write_text(f"before\n{start}\nold\n{end}\nafter\n")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "EXAMPLE", tmp_path / "docs" / "example.txt")
    monkeypatch.setattr(generate, "SCENE", DOCS / "scene.png")
    monkeypatch.setattr(generate.example, "scene", lambda: (DOCS / "scene.png").read_bytes())
    monkeypatch.setattr(generate.example, "terminal", lambda: "$ mvw\n")
    runner = CliRunner()
    checked = runner.invoke(generate.main, ["--check"])
    assert checked.exit_code == 1
    assert checked.stdout.splitlines() == [
        "out of date: docs/example.txt",
        "out of date: README.md",
    ]
    assert "old" in page.read_text()
    assert runner.invoke(generate.main, []).exit_code == 0
    assert page.read_text().startswith(f"before\n{start}\n| Code |")
    assert page.read_text().endswith(f"|\n{end}\nafter\n")
    again = runner.invoke(generate.main, ["--check"])
    assert (again.exit_code, again.stdout) == (0, "")


def test_every_option_of_every_command_is_in_the_reference(generate: Any) -> None:
    sections = dict(re.findall(r"^## `(.+?)`\n(.*?)(?=^## |\Z)", text_of("cli.md"), re.M | re.S))
    seen = set()
    for path, command in generate.reference.walk(cli, ("mvw",)):
        name = " ".join(path)
        seen.add(name)
        for parameter in command.params:
            for option in [*parameter.opts, *parameter.secondary_opts]:
                if isinstance(parameter, click.Option) and not parameter.hidden:
                    assert re.search(rf"(?<![\w-]){option}(?![\w-])", sections[name]), option
    assert seen == sections.keys()
    assert {"mvw infer", "mvw list adapters", "mvw samples"} <= seen


HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("mvw_")}


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_shown_and_tested(hook: str) -> None:
    arguments = ", ".join(inspect.signature(HOOKS[hook]).parameters)
    assert f"### `{hook}({arguments})`" in text_of("plugins.md")
    assert f"def {hook}({arguments}" in (EXAMPLE / "mvw_example" / "__init__.py").read_text()
    tests = "".join(
        path.read_text("utf-8") for path in Path(__file__).parents[1].rglob("test_*.py")
    )
    assert f"def test_hook_{hook}(" in tests


def test_the_exit_codes_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\d+)` \| `(\w+)` \| (.+) \|$", text_of("exit-codes.md"), re.M)
    assert [(int(code), name) for code, name, _ in rows] == [(c.value, c.name) for c in ExitCode]
    assert all(meaning.endswith(".") for *_, meaning in rows)


def test_every_key_and_variable_is_documented() -> None:
    from mvw_cli.profiles.schema import fields

    cells = first_cells("profiles.md")
    assert set(fields()) <= set(cells)
    for field in ("m", "until"):
        assert f"`withdrawal.{field}` |" in text_of("profiles.md")
    documented = set(
        re.findall(r"MVW_[A-Z_]*[A-Z]", text_of("profiles.md") + text_of("plugins.md"))
    )
    assert variables_in_code() <= documented


def variables_in_code() -> set[str]:
    """`MVW_*` names in string literals that are no docstrings."""
    found = {
        node.value
        for path in [*(ROOT / "mvw_cli").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"MVW_[A-Z_]*[A-Z]", node.value)
    }
    assert {"MVW_HOME", "MVW_LOAD_PLUGINS", "MVW_PROFILE"} <= found
    return found


def test_every_public_name_is_listed() -> None:
    import mvw_cli

    for name in mvw_cli.__all__:
        if not name.startswith("_"):
            assert f"`{name}`" in text_of("plugins.md"), name


def test_every_key_of_the_json_document_is_documented(mvw: Run, tmp_path: Path) -> None:
    checkpoint, picture = write_checkpoint(tmp_path / "model"), tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    asked = ("infer", str(picture), "w1 w2", "--model", str(checkpoint))
    ran = mvw(*asked, "--m", "4", "--max-new-tokens", "8", "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["withdrawal"]["step"] == 4
    document["remarks"] = ["a remark"]
    documented = first_cells("json.md", before="\n## Records of `mvw batch`\n")
    whole = ("stages", "profile.values", "profile.origins")  # other pages describe them
    assert set(dotted(document, whole=whole)) | {"withdrawal", "vision"} == set(documented)
