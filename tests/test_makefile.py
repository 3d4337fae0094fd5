"""The README's first command does what it says, apart from the set-up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
