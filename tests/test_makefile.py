"""The commands of the Makefile do what they say, apart from the set-up."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

from docs_pages import generator
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def test_the_lines_of_make_demo_answer_the_question(tmp_path: Path) -> None:
    recipe = (ROOT / "Makefile").read_text().split("demo: $(INSTALLED)\n")[1].split("\n\n")[0]
    script = recipe.replace("\t", "").replace("$(BIN)/mvw", f"{sys.executable} -m mvw_cli")
    done = subprocess.run(
        ["sh", "-ec", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3\n"
    assert "vision withdrawn" in done.stderr


def test_make_benchmarks_runs_every_script_and_then_writes_the_docs() -> None:
    *measured, written = _lines("benchmarks")
    assert written == "python docs/generate.py"
    assert len(set(measured)) == len(measured)
    folder = ROOT / "benchmarks"
    on_a_gpu = "".join(path.read_text() for path in folder.glob("gpu_*.sh"))
    scripts = {
        path.name
        for path in folder.glob("*.py")
        if '__name__ == "__main__"' in path.read_text() and path.name not in on_a_gpu
    }
    assert scripts == {line.split()[1].removeprefix("benchmarks/") for line in measured}


def test_make_benchmarks_makes_every_result_that_the_docs_name() -> None:
    measured = _lines("benchmarks")
    with generator() as generate:
        for command in generate.figures.COMMANDS.values():
            made = command.removeprefix("make ")
            assert set([command] if made == command else _lines(made)) <= set(measured), command


def test_make_test_oldest_installs_the_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    bounds = dict(one.split(">=") for one in listed if ">=" in one)
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    makefile = (ROOT / "Makefile").read_text()
    [pinned["transformers"]] = re.findall(r"^TRANSFORMERS \?= (.+)$", makefile, re.MULTILINE)
    bounded = {name.partition(">")[0] for name in project["dependencies"]} - {"torch"}
    assert bounded <= {name.lower() for name in pinned}
    for name, version in pinned.items():
        bound = bounds.get(name.lower())
        assert bound is None or Version(version) == Version(bound), name


def _lines(target: str) -> list[str]:
    """What a target runs, without the folder of the interpreter and without variables."""
    recipe = (ROOT / "Makefile").read_text().split(f"\n{target}: ")[1].split("\n\n")[0]
    lines = [line for line in recipe.splitlines() if line.startswith("\t")]
    return [
        re.sub(r"^\tPYTHONPATH=\S+ |\$\(BIN\)/|\$\(VLLM\)/bin/|^\t", "", line) for line in lines
    ]
