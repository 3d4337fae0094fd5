"""The commands of the Makefile do what they say, apart from the set-up."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from docs_pages import generator

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
    scripts = {
        path.name
        for path in (ROOT / "benchmarks").glob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    assert scripts == {line.split()[1].removeprefix("benchmarks/") for line in measured}


def test_make_benchmarks_makes_every_result_that_the_docs_name() -> None:
    measured = _lines("benchmarks")
    with generator() as generate:
        for command in generate.figures.COMMANDS.values():
            made = command.removeprefix("make ")
            assert set([command] if made == command else _lines(made)) <= set(measured), command


def _lines(target: str) -> list[str]:
    """What a target runs, without the folder of the interpreter and without variables."""
    recipe = (ROOT / "Makefile").read_text().split(f"\n{target}: ")[1].split("\n\n")[0]
    lines = [line for line in recipe.splitlines() if line.startswith("\t")]
    return [re.sub(r"^\tPYTHONPATH=\S+ |\$\(BIN\)/|^\t", "", line) for line in lines]
