"""The group of `mvw calibrate`: to ask for help loads no search."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Ran

Run = Callable[..., Ran]
HEAVY = {"torch", "transformers", "PIL", "numpy", "rich", "yaml", "pydantic", "matplotlib"}


@pytest.mark.parametrize("words", [[], ["vtw"], ["mvw"], ["mass"], ["dyvte"]])
def test_help_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from mvw_cli.__main__ import main\n"
        f"assert main({['calibrate', *words, '--help']!r}) == 0\n"
        f"found = {HEAVY!r} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_an_unknown_method_is_refused(mvw: Run) -> None:
    ran = mvw("calibrate", "nothing")
    assert ran.code == 2 and "No such command 'nothing'" in ran.err


def test_the_help_names_every_method(mvw: Run) -> None:
    out = mvw("calibrate", "--help").out
    for name in ("vtw", "mvw", "mass", "dyvte"):
        assert f"\n  {name} " in out
