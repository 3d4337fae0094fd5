"""What the wheel holds, that it works when installed, and that it shadows nobody's package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import ROOT, make_venv, own_adapters, pip, pip_install, run_process


@pytest.fixture(scope="module")
def wheel(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    def make(folder: Path) -> None:
        flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
        pip(Path(sys.executable), "wheel", *flags, "--wheel-dir", str(folder), str(ROOT))

    return next(once("wheel", make).glob("mvw-*.whl"))


def test_the_wheel_holds_what_is_needed_and_no_more(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "mvw_cli/__main__.py",
        "mvw_cli/py.typed",
        "mvw_cli/profiles/schema.py",
        "mvw_cli/_profiles/shapes.yaml",
        "mvw_cli/_profiles/hf.yaml",
        *(f"{package}/__init__.py" for package in own_adapters().values()),
    } <= names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "mvw_cli",
        *own_adapters().values(),
    }
    for profile in (ROOT / "profiles").glob("*.yaml"):
        assert f"mvw_cli/_profiles/{profile.name}" in names
    tmpl, pages = (
        {
            path.relative_to(ROOT).as_posix()
            for path in ROOT.glob(f"mvw_cli/**/{pattern}")
            if path.is_file()
        }
        for pattern in ("*.tmpl", "templates/*")
    )
    assert len(tmpl) == 9 and {"mvw_cli/render/templates/base.html.j2"} <= pages
    assert tmpl <= names and {one for one in pages if "__pycache__" not in one} <= names


def test_the_source_distribution_holds_the_templates() -> None:
    from hatchling.builders.sdist import SdistBuilder

    held = {file.relative_path for file in SdistBuilder(str(ROOT)).recurse_included_files()}
    assert {"pyproject.toml", "mvw_cli/__main__.py", "profiles/shapes.yaml"} <= held
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("mvw_cli/**/*.tmpl")} <= held


def test_the_installed_wheel_works(wheel: Path, tmp_path: Path) -> None:
    python = make_venv(tmp_path / "venv")
    pip_install(python, wheel)
    # A folder `profiles` beside an installed package is somebody else's.
    site = next(python.parent.parent.glob("lib/*/site-packages"))
    (site / "profiles").mkdir()
    (site / "profiles" / "stray.yaml").write_text("adapter: nobody\n")
    ran = run_process(python, "list", "profiles", "--json", cwd=tmp_path)
    found = {record["name"]: record for record in json.loads(ran.out)["profiles"]}
    assert (ran.code, ran.err) == (0, "")
    assert "stray" not in found
    assert Path(found["shapes"]["paths"][0]).parts[-3:] == ("mvw_cli", "_profiles", "shapes.yaml")
    adapters = json.loads(run_process(python, "list", "adapters", "--json", cwd=tmp_path).out)
    assert [record["name"] for record in adapters["adapters"]] == [*own_adapters()]
    assert run_process(python, "new-adapter", "my-model", cwd=tmp_path).code == 0
    assert (tmp_path / "mvw-my-model" / "mvw_my_model" / "model.py").exists()
    script = subprocess.run([python.parent / "mvw", "--version"], capture_output=True, text=True)
    assert script.returncode == 0


def test_a_package_called_adapters_stays_importable(tmp_path: Path) -> None:
    package = tmp_path / "adapters"
    package.mkdir()
    (package / "__init__.py").write_text("whose = 'somebody else'\n")
    code = "import mvw_cli, mvw_hf, adapters; print(adapters.whose)"
    for folder in (ROOT, tmp_path / "adapters"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.stdout == "somebody else\n", done.stderr


def test_this_checkout_puts_no_folder_on_the_path(tmp_path: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('adapters', 'tests') if u.find_spec(n)])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"
