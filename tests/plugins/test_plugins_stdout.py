"""What a plugin writes to stdout while it is imported, by whatever way, comes out on stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Ran

from mvw_cli import console

PLUGIN = """
import ctypes, os, sys
from mvw_cli import PolicyInfo, hookimpl

print("python, by the entry point")
os.write(1, b"descriptor, by the entry point\\n")
ctypes.CDLL(None).puts(b"libc, by the entry point")

@hookimpl
def mvw_register_policies(register):
    os.write(1, b"descriptor, by a hook\\n")
    register(PolicyInfo(name="noisy", target="mvw_noisy_heavy:Noisy", summary="talks"))
"""
HEAVY = """
import ctypes, os, subprocess, sys
from dataclasses import dataclass
from typing import ClassVar
from mvw_cli import Withdraw, WithdrawalPolicy

sys.__stdout__.write("python, by the heavy module\\n")
os.write(1, b"descriptor, by the heavy module\\n")
ctypes.CDLL(None).puts(b"libc, by the heavy module")
subprocess.run(["echo", "child, by the heavy module"])

@dataclass(frozen=True)
class Noisy(WithdrawalPolicy):
    name: ClassVar[str] = "noisy"

    def begin(self):
        return lambda view: Withdraw() if view.step == 3 else None

    def describe(self):
        return "after 3 tokens"
"""
BY_ENTRY_POINT = {f"{one}, by the entry point" for one in ("python", "descriptor", "libc")}
BY_ENTRY_POINT |= {"descriptor, by a hook"}
BY_HEAVY = {f"{one}, by the heavy module" for one in ("python", "descriptor", "libc", "child")}


@pytest.fixture
def noisy(tmp_path: Path) -> Callable[..., Ran]:
    """Run the console script with the plugin that talks; stdout is a pipe."""
    site = tmp_path / "site"
    info = site / "mvw_noisy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mvw-noisy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mvw]\nnoisy = mvw_noisy\n")
    (site / "mvw_noisy.py").write_text(PLUGIN)
    (site / "mvw_noisy_heavy.py").write_text(HEAVY)

    def run(*arguments: str, **streams: int) -> Ran:
        done = subprocess.run(
            [Path(sys.executable).parent / "mvw", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"},
            encoding="utf-8",
            timeout=120,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},  # type: ignore[call-overload]
        )
        return Ran(done.returncode, done.stdout or "", done.stderr or "")

    return run


def test_a_list_is_one_json_document(noisy: Callable[..., Ran]) -> None:
    ran = noisy("list", "policies", "--json")
    assert ran.code == 0, ran.err
    assert "noisy" in [one["name"] for one in json.loads(ran.out)["policies"]]
    assert set(ran.err.splitlines()) == BY_ENTRY_POINT


def test_an_answer_is_one_json_document(noisy: Callable[..., Ran]) -> None:
    assert noisy("samples", "samples", "--count", "2").out == "samples/questions.jsonl\n"
    asked = ("How many stars are there?", "--policy", "noisy", "--json", "--device", "cpu")
    ran = noisy("infer", "samples/scene-0001.png", *asked)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["withdrawal"]["step"] == 3
    assert set(ran.err.splitlines()) >= BY_ENTRY_POINT | BY_HEAVY


def test_a_worker_writes_nothing_to_the_stdout_of_its_parent() -> None:
    """tests/cli/test_faulty_policy.py has a whole batch whose workers import what talks."""
    code = (
        "import os\n"
        "from mvw_cli.machine.child_process import be_quiet\n"
        "be_quiet()\n"
        "os.write(1, b'descriptor')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"descriptor")


def test_a_closed_stdout_or_stderr_is_no_matter(noisy: Callable[..., Ran], tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "mvw"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    for closed in (">&-", "2>&-"):
        done = subprocess.run(
            ["sh", "-c", f'"$0" list policies --json {closed}', script],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    assert "noisy" in [one["name"] for one in json.loads(done.stdout)["policies"]]


def test_what_was_written_before_stays_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "import os, sys\n"
        "from mvw_cli import console\n"
        "console.write('before')\n"  # still in Python's buffer
        "with console.stdout_to_stderr():\n"
        "    os.write(1, b'within\\n')\n"
        "console.write('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("before\nafter\n", "within\n")


def test_an_exception_gives_stdout_back(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), console.stdout_to_stderr():
        os.write(1, b"within\n")
        raise KeyError
    os.write(1, b"after\n")
    assert capfd.readouterr() == ("after\n", "within\n")
