"""The guides of docs: what they show is what is written, and the real model holds."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from docs_pages import DOCS, ROOT, blocks, text_of

from mvw_cli.plugins import Kind
from mvw_cli.scaffold import render, write

PAGE = DOCS / "writing-an-adapter.md"
REAL = DOCS / "examples" / "my-model"


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("pyproject.toml", "toml"),
        ("mvw_my_model/__init__.py", "python"),
        ("mvw_my_model/model.py", "python"),
        ("tests/test_contract.py", "python"),
    ],
)
def test_the_guide_shows_what_is_written(path: str, language: str) -> None:
    assert render("adapter", "my-model")[path] in blocks(PAGE, language)


def test_the_guide_of_policies_shows_what_is_written() -> None:
    page = DOCS / "writing-a-policy.md"
    written = render("policy", "early")
    assert written["mvw_early/policy.py"] in blocks(page, "python")
    assert not [
        path
        for path in written
        if f"`{path}`" not in text_of(page.name) and path != "mvw_early/policy.py"
    ]


def test_every_written_file_is_in_the_guide() -> None:
    for path in render("adapter", "my-model"):
        name = path.removeprefix("mvw_my_model/")
        assert f"new-adapter {path} -->" in text_of(PAGE.name) or f"`{name}`" in text_of(PAGE.name)


def test_the_guide_shows_the_real_one() -> None:
    assert (REAL / "model.py").read_text("utf-8") in blocks(PAGE, "python")


def test_the_steps_of_the_guide_lead_from_one_to_the_other() -> None:
    """The checkpoint and the summary are all that changes in `__init__`."""
    written = render("adapter", "my-model")["mvw_my_model/__init__.py"]
    real = (REAL / "__init__.py").read_text("utf-8")
    checkpoint = re.search(r"`(checkpoints=\(.+?\))`", text_of(PAGE.name))
    summary = re.search(r"summary=.+", real)
    assert checkpoint is not None and summary is not None
    changed = re.sub(r"checkpoints=\(.+?\)", checkpoint[1], written)
    changed = re.sub(r"summary=.+", summary[0], changed)
    assert ast.dump(ast.parse(changed)) == ast.dump(ast.parse(real))


def test_the_real_one_passes_the_kit(tmp_path: Path) -> None:
    """The scaffold with the guide's files in it, importable without pip."""
    package = write("adapter", "my-model", tmp_path)
    for file in REAL.glob("*.py"):
        shutil.copy(file, package / "mvw_my_model")
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = package / f"mvw_my_model-{project['version']}.dist-info"
    info.mkdir()
    header = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(header)
    (info / "entry_points.txt").write_text("[mvw]\nmy-model = mvw_my_model\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package), "MVW_LOAD_PLUGINS": "my-model"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"\d\d passed", done.stdout), done.stdout


def test_what_is_written_holds_to_the_public_names() -> None:
    """What docs/plugins.md promises a third party, and nothing more."""
    import mvw_cli

    promised = {
        "mvw_hf.model": {"HuggingFace"},
        "mvw_cli.testing": {"AdapterContract", "PolicyContract"},
    }
    written = {**render("adapter", "my-model"), **render("policy", "early")}
    for text in [
        *(text for path, text in written.items() if path.endswith(".py")),
        *(file.read_text("utf-8") for file in REAL.glob("*.py")),
    ]:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mvw_"):
                assert node.module is not None
                allowed = {"mvw_cli": set(mvw_cli.__all__), **promised}
                if not node.module.startswith(("mvw_my_model", "mvw_early")):
                    assert {name.name for name in node.names} <= allowed[node.module]
    for module, names in promised.items():
        for name in names:
            assert f"`{module}.{name}`" in text_of("plugins.md"), name


@pytest.mark.parametrize(("kind", "name"), [("adapter", "my-model"), ("policy", "early")])
def test_what_is_written_is_formatted(tmp_path: Path, kind: Kind, name: str) -> None:
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff is None:
        pytest.skip("ruff is not installed here")
    package = write(kind, name, tmp_path)
    for command in (("check", "--no-cache"), ("format", "--check", "--no-cache")):
        done = subprocess.run(
            [ruff, *command, "--config", ROOT / "pyproject.toml", "."],
            cwd=package,  # where mvw is a third party
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout
