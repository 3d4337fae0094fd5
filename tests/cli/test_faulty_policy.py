"""A policy at fault, by every command that runs one: named, code 4, and what was done is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty import BEGUN
from hints import parse_hint
from plugin_path import plugin_path
from processes import Ran

from mvw_cli.cost.case import Device
from mvw_cli.errors import ExitCode

Run = Callable[..., Ran]
QUESTION = "How many red circles are there?"
WHO = "Error: policy `faulty` (mvw-faulty 1.0) "


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    BEGUN.clear()
    found = plugin_path(tmp_path, "faulty")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return found


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    from mvw_shapes.samples import write_samples

    write_samples(tmp_path / "scenes", 4, seed=0)
    return tmp_path / "scenes"


def told(ran: Ran) -> list[str]:
    """What stands in the three lines of the error, which are the last."""
    error, cause, hint = ran.err.splitlines()[-3:]
    assert "Traceback" not in ran.err
    assert sum(line.startswith("Error: ") for line in ran.err.splitlines()) == 1
    parse_hint(hint.removeprefix("Hint: "))
    return [error, cause.strip(), hint]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("hook=prefill,how=list", "returned a list of 144 before layer 2 of the prefill"),
        ("hook=step,how=keep-float", "returned Withdraw(keep={0: a tensor of float32, shape "),
        ("hook=step,how=raises", "raised ZeroDivisionError after token 2"),
        ("hook=attend,how=none", "returned None in a decode step"),
        ("hook=describe,how=raises", "raised ZeroDivisionError from describe()"),
        ("hook=withdrawal_step,how=raises", "raised ZeroDivisionError from withdrawal_step()"),
        ("hook=conflict,how=raises", "raised ZeroDivisionError from conflict()"),
        ("hook=made", "raised ZeroDivisionError on being made"),
    ],
)
def test_infer(mvw: Run, scenes: Path, fields: str, said: str) -> None:
    words = ("infer", str(scenes / "scene-0001.png"), QUESTION, "--policy", f"faulty:{fields}")
    ran = mvw(*words, "--json", "--device", "cpu")
    assert (ran.code, ran.out) == (ExitCode.PLUGIN, "")
    error, cause, hint = told(ran)
    assert error.startswith(WHO + said)
    assert "expected is" in cause or "by nothing" in cause
    alone = said.endswith(("()", "made"))
    other = "Hint: pip install --upgrade mvw-faulty"
    assert hint == other if alone else hint.startswith("Hint: mvw infer ")
    assert alone or hint.endswith(" --debug")


def test_batch_keeps_what_was_answered(mvw: Run, scenes: Path) -> None:
    """The policy is right for two requests; the same command goes on from there."""
    words = ("batch", str(scenes), QUESTION, "--policy", "faulty:hook=late", "--slots", "1")
    words += ("--device", "cpu", "--max-new-tokens", "8", "--json", "-o", "r.jsonl")
    for answered, listed in ((2, 2), (0, 2)):
        ran = mvw(*words)
        assert ran.code == ExitCode.PLUGIN
        summary = json.loads(ran.out)
        assert [summary[key] for key in ("answered", "failed", "remaining")] == [answered, 0, 2]
        error, _, hint = told(ran)
        assert error == f"{WHO}returned 'late' after token 1"
        assert hint.startswith("Hint: mvw batch ") and hint.endswith(" --debug")
        records = [json.loads(line) for line in Path("r.jsonl").read_text().splitlines()]
        assert [record["status"] for record in records] == ["ok"] * listed


def test_several_workers(installed: str, scenes: Path) -> None:
    words = ["batch", str(scenes), QUESTION, "--policy", "faulty:hook=prefill,how=number"]
    words += ["--workers", "2", "--device", "cpu", "--json", "-o", "r.jsonl"]
    done = subprocess.run(
        [sys.executable, "-m", "mvw_cli", *words],
        env={**os.environ, "PYTHONPATH": installed, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    ran = Ran(done.returncode, done.stdout, done.stderr)
    assert ran.code == ExitCode.PLUGIN, ran.err
    error, cause, _ = told(ran)
    assert error == f"{WHO}returned 7 before layer 2 of the prefill"
    assert cause.startswith("expected is a bool tensor of shape (144,), or None; see ")
    assert json.loads(ran.out)["failed"] == 0  # and nothing else: `faulty` talks while imported
    assert ran.err.count("faulty: from the descriptor") == 3
    assert "SIGKILL" not in ran.err


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("hook=step,how=class", "returned the class Withdraw after token 2"),
        ("hook=describe,how=raises", "raised ZeroDivisionError from describe()"),
    ],
)
def test_profile(mvw: Run, fields: str, said: str) -> None:
    ran = mvw(*PROFILE, "--policy", f"faulty:{fields}")
    assert ran.code == ExitCode.PLUGIN
    assert told(ran)[0] == WHO + said
    assert not Path("report.json").exists()


def test_profile_delivers_what_was_measured_before(
    mvw: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that is watched for memory and the first pair are right."""
    known = Device("Some Device", "measured", 2e10, 1e11, 1e-5, 2**34, "known")
    monkeypatch.setattr("mvw_cli.bench.measure.device_peaks.calibrate", lambda *_: known)
    ran = mvw(*PROFILE, "--policy", "faulty:hook=late", "--runs", "3")
    assert ran.code == ExitCode.PLUGIN
    assert told(ran)[0] == f"{WHO}returned 'late' after token 1"
    [cell] = json.loads(Path("report.json").read_text())["cells"]
    assert cell["pairs"] == 1 and "returned 'late' after token 1" in cell["ended"]


PROFILE = ("profile", "--new-tokens", "4", "--runs", "1", "--min-time", "0", "--limit", "1")
PROFILE += ("--warmup", "0", "--no-answers", "--no-attention-mass", "--device", "cpu")
PROFILE += ("-o", "report.json")


@pytest.mark.parametrize("command", ["doctor", "show"])
def test_what_only_makes_the_policy(mvw: Run, command: str) -> None:
    (Path("faulty.yaml")).write_text("adapter: shapes\nwithdrawal: {policy: faulty, hook: made}\n")
    words = (
        ("doctor", "--profile", "faulty.yaml") if command == "doctor" else ("show", "faulty.yaml")
    )
    ran = mvw(*words)
    assert "policy `faulty` (mvw-faulty 1.0) raised ZeroDivisionError on being made" in (
        ran.out + ran.err
    )
    assert ran.code in (ExitCode.PLUGIN, ExitCode.CHECKS_FAILED)
