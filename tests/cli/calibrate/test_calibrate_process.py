"""`mvw calibrate` in a process of its own: interrupts, two writers of one log, and its help."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "mvw_cli", "calibrate", "vtw", "--limit", "400", "--tokens", "32"]


def samples_in(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def test_ctrl_c_keeps_what_is_finished_and_the_next_run_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "vtw.samples.jsonl"
    with subprocess.Popen(
        COMMAND, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        deadline = time.monotonic() + 90
        while samples_in(log) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    finished = samples_in(log)
    assert 2 <= finished < 400
    assert f"{finished} samples are in vtw.samples.jsonl; the same command goes on" in err
    assert out == "" and not (tmp_path / "vtw.report.json").exists()
    before = log.read_bytes()
    # Fewer than are there: nothing is measured, and every figure comes from the log.
    again = [word if word != "400" else "2" for word in COMMAND]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr  # along 32 tokens no layer will do
    assert "Nothing is suggested" in done.stderr
    report = json.loads((tmp_path / "vtw.report.json").read_text())
    lines = [json.loads(line) for line in before.splitlines()]
    assert [one["kl_nats"] for one in report["samples"]] == [one["kl_nats"] for one in lines[:2]]
    assert log.read_bytes() == before


def test_a_log_has_one_writer(tmp_path: Path) -> None:
    log = tmp_path / "vtw.samples.jsonl"
    descriptor = os.open(log, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    done = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    os.close(descriptor)
    assert done.returncode == 2
    assert "is being written by another process" in done.stderr


@pytest.mark.parametrize("words", [[], ["dyvte"]])
def test_help_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    heavy = {"torch", "transformers", "PIL", "numpy", "rich", "yaml", "pydantic"}
    code = (
        "import sys\n"
        "from mvw_cli.__main__ import main\n"
        f"assert main({['calibrate', *words, '--help']!r}) == 0\n"
        f"assert not {heavy!r} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
