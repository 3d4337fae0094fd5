"""The `mvw` group: help, version, completion, and what none of them may import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Ran

from mvw_cli import __version__
from mvw_cli.plugins import load_plugins

Run = Callable[..., Ran]
HEAVY = {"torch", "transformers", "PIL", "numpy", "rich", "yaml", "pydantic"}
COMMANDS = ["infer", "list", "show", "plugins"]


def test_no_arguments_give_a_short_help(mvw: Run) -> None:
    ran = mvw()
    assert (ran.code, ran.err) == (0, "")
    assert "mvw infer" in ran.out
    assert len(ran.out.splitlines()) < 10
    assert load_plugins.cache_info().currsize == 0


def test_version(mvw: Run) -> None:
    assert mvw("--version") == Ran(0, f"mvw {__version__}\n", "")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_every_command(mvw: Run, option: str) -> None:
    ran = mvw(option)
    assert (ran.code, ran.err) == (0, "")
    for name in COMMANDS:
        assert f"\n  {name} " in ran.out


@pytest.mark.parametrize(
    "command",
    [[], *([name] for name in COMMANDS), *(["list", x] for x in ("adapters", "profiles"))],
)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help_and_the_common_options(
    mvw: Run, command: list[str], option: str
) -> None:
    ran = mvw(*command, option)
    assert ran.code == 0
    for common in ("--quiet", "--no-color", "--debug", "--help"):
        assert common in ran.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("mvw ", {"infer", "list", "show", "plugins"}),
        ("mvw list ", {"adapters", "policies", "profiles"}),
        ("mvw show sha", {"shapes"}),
        ("mvw show --sch", {"--schema"}),
    ],
)
def test_completion(
    process: Run, words: str, expected: set[str], user_profile: Callable[[str, str], Path]
) -> None:
    user_profile("not-even-yaml", "][")
    typed = words.split()
    ran = process(
        _MVW_COMPLETE="bash_complete",
        COMP_WORDS=words,
        COMP_CWORD=str(len(typed) - (not words.endswith(" "))),
    )
    found = {line.split(",")[1] for line in ran.out.splitlines()}
    assert expected <= found
    assert ran.err == ""


def test_completing_a_profile_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "os.environ.update(_MVW_COMPLETE='bash_complete', COMP_WORDS='mvw show ', COMP_CWORD='2')\n"
        "from mvw_cli.__main__ import main\n"
        "try:\n    main([])\n"
        "finally:\n"
        f"    assert not {HEAVY!r} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "plain,shapes" in done.stdout


def test_options_work_before_and_after_the_command(process: Run) -> None:
    for arguments in (["-q", "list", "adapters"], ["list", "adapters", "-q"]):
        ran = process(*arguments, MVW_LOAD_PLUGINS="no-such-plugin")
        assert (ran.code, ran.err) == (0, "")
