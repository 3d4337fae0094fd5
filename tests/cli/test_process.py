"""Ctrl-C around work that has started processes of its own, as vLLM does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from processes import alive
from waiting import until

STUBBORN = """
import multiprocessing, os, signal, sys, time
from mvw_cli.cli.process import exit_on_interrupt

def sleep(pipe):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as one that waits in native code
    pipe.send("ready")
    time.sleep(600)

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=sleep, args=(theirs,))
    child.start()
    ours.recv()
    with exit_on_interrupt(lambda: "Interrupted.\\n"):
        print(child.pid, flush=True)
        time.sleep(600)
"""


def test_no_process_that_was_started_outlives_an_interrupt(tmp_path: Path) -> None:
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(script)], start_new_session=True, **pipes) as mvw:
        assert mvw.stdout is not None
        child = int(mvw.stdout.readline())
        try:
            mvw.send_signal(signal.SIGINT)
            _, err = mvw.communicate(timeout=30)
            assert (mvw.returncode, err) == (130, "Interrupted.\n")
            until(lambda: not alive(child))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(mvw.pid, signal.SIGKILL)
