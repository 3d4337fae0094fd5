"""`mvw` in processes that are forked from one that has imported PyTorch and transformers already.

Starting Python and importing these takes most of the time of a run on a tiny model. What is forked
is a process like any other: with its own session, files and signals, and it can be killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("torch", "transformers", "mvw_hf.model", "mvw_hf.tiny", "mvw_cli.__main__", "PIL.Image"),
        *("transformers.models.llava.modeling_llava", "transformers.models.clip.modeling_clip"),
        *("transformers.models.llama.modeling_llama", "mvw_cli.engine", "mvw_cli.profiles"),
        *("mvw_cli.batch.workers.worker", "mvw_cli.batch.store.log", "mvw_cli.cli.batch.run"),
    ]
)


@dataclass
class Forked:
    """One process; the same calls as `subprocess.Popen` has."""

    _process: ForkServerProcess
    _files: list[Path]

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self._process.pid or 0, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float) -> None:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("mvw", timeout)

    def communicate(self, timeout: float) -> tuple[bytes, bytes]:
        self.wait(timeout)
        _, out, err = self._files
        return out.read_bytes(), err.read_bytes()


def start(
    words: list[str], *, files: Path, cwd: Path, environment: dict[str, str], stdin: bytes = b""
) -> Forked:
    """Run `mvw` with these words; what it reads and writes lies in the folder `files`."""
    streams = [files / name for name in ("in", "out", "err")]
    streams[0].write_bytes(stdin)
    process = CONTEXT.Process(target=_become, args=(words, streams, cwd, environment))
    process.start()
    return Forked(process, streams)


def _become(words: list[str], streams: list[Path], cwd: Path, environment: dict[str, str]) -> None:
    """Be the process that was asked for."""
    import atexit
    import threading

    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    for number, name in enumerate(streams):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(name, flags), number)
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 - as long as the process
    sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
    from mvw_cli.__main__ import main

    code = 1
    try:
        code = main(words)
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)
