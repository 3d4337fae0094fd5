"""A cell in a process of its own: what comes back, what stops it, what it dies of."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from planted import job

from mvw_cli.bench.measure.process import _died, measure_apart
from mvw_cli.errors import MvwError, OutOfMemory, PluginProblem


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def measuring() -> set[int]:
    """Processes that this one has spawned and that are still there."""
    told = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return {int(word) for word in told.split() if b"spawn_main" in _command(int(word))}


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_cell_comes_back_from_a_fresh_process(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    seen: set[int] = set()

    def progress(text: str, done: int, total: int) -> None:
        said.append((text, done, total))
        for child in measuring():
            seen.add(child)
            os.kill(child, signal.SIGINT)  # as the terminal does; it is for the parent to decide

    measured = measure_apart(job(tmp_path, runs=2, warm_up=1), progress=progress)
    assert measured.cell is not None
    assert (measured.cell.process, measured.cell.pairs) == ("own", 2)
    assert (measured.model.adapter, measured.model.device) == ("shapes", "cpu")
    assert [arm.name for arm in measured.cell.arms] == ["baseline", "m=4"]
    later = measured.cell.arms[1]
    assert later.withdrawn_after == 4 and later.generated_tokens.samples == [12.0, 12.0]
    assert later.memory.kv_bytes_after == later.memory.kv_formula_bytes_after
    assert measured.environment.threads == 1
    texts = [text for text, _, _ in said]
    assert texts[0] == "loading the model" and "m=4: pair 2 of 2" in texts
    assert len(seen) == 1 and not measuring()


def test_errors_are_the_user_s_here_too(tmp_path: Path) -> None:
    whole = job(tmp_path)
    unknown = replace(whole, profile=whole.profile.model_copy(update={"adapter": "nobody"}))
    with pytest.raises(PluginProblem, match="nobody") as problem:
        measure_apart(unknown)
    assert problem.value.hint == "mvw list adapters"


def test_what_there_is_comes_back_when_it_is_stopped(tmp_path: Path) -> None:
    said: list[str] = []
    measured = measure_apart(
        job(tmp_path, runs=10_000),
        progress=lambda text, done, total: said.append(text),
        stopping=lambda: "m=4: pair 2 of 10000" in said,
    )
    assert measured.stopped and measured.cell is not None
    assert 1 <= measured.cell.pairs < 10_000


def test_a_process_that_is_killed_is_told_of(tmp_path: Path) -> None:
    def kill(text: str, done: int, total: int) -> None:
        for child in measuring():
            os.kill(child, signal.SIGKILL)

    with pytest.raises(OutOfMemory) as died:
        measure_apart(job(tmp_path, batch=4, runs=1_000), progress=kill)
    assert died.value.hint == "mvw profile --batch 2"
    assert "SIGKILL" in (died.value.cause or "")
    assert not measuring()


@pytest.mark.parametrize("code", [-signal.SIGSEGV, 3])
def test_other_ends_name_another_way(tmp_path: Path, code: int) -> None:
    error = _died(code, job(tmp_path))
    assert type(error) is MvwError
    assert error.hint == "mvw profile --in-process"
    assert ("SIGSEGV" if code < 0 else "exit code 3") in (error.cause or "")


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "job").write_bytes(pickle.dumps(job(tmp_path, runs=100_000)))
    (tmp_path / "parent.py").write_text(
        "import os, pickle, signal, sys\n"
        "from pathlib import Path\n"
        "from mvw_cli.bench.measure.process import _died, measure_apart\n"
        "def told(text, done, total):\n"
        "    if 'pair 2' in text:\n"
        "        pids = Path(f'/proc/self/task/{os.getpid()}/children').read_text()\n"
        "        print(pids, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    measure_apart(pickle.loads(Path(sys.argv[1]).read_bytes()), progress=told)\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "parent.py", tmp_path / "job"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(word) for word in done.stdout.split()]
    assert pids
    until = time.monotonic() + 20
    while any(b"spawn_main" in _command(pid) for pid in pids):
        assert time.monotonic() < until, "it outlives its parent"
        time.sleep(0.05)
