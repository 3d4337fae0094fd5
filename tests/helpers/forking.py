"""`mvw` in processes that are forked from one that has imported PyTorch and transformers already.

Starting Python and importing these takes most of the time of a run on a tiny model. What is forked
is a process like any other: with its own session, files and signals, and it can be killed. Run as a
script it is the process that forks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__)
_MODULES = (
    *("torch", "transformers", "mvw_hf.model", "mvw_hf.tiny", "mvw_cli.__main__"),
    *("transformers.models.llava.modeling_llava", "transformers.models.clip.modeling_clip"),
    *("transformers.models.llama.modeling_llama", "mvw_cli.engine", "mvw_cli.batch.workers.worker"),
    *("mvw_cli.cli.batch.run", "mvw_cli.batch.store.log", "mvw_cli.profiles", "PIL.Image"),
)


@dataclass
class Forked:
    """One process; the same calls as `subprocess.Popen` has."""

    pid: int
    returncode: int | None = None
    _connection: socket.socket = field(kw_only=True)
    _files: tuple[Path, Path] = field(kw_only=True)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        if self.returncode is None:
            self._connection.setblocking(False)
            with suppress(BlockingIOError):
                self._take(self._connection.recv(64))
        return self.returncode

    def wait(self, timeout: float) -> int:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self._take(self._connection.recv(64))
            except TimeoutError:
                raise subprocess.TimeoutExpired("mvw", timeout) from None
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float) -> tuple[bytes, bytes]:
        self.wait(timeout)
        out, err = self._files
        return out.read_bytes(), err.read_bytes()

    def _take(self, data: bytes) -> None:
        status = int(data)
        self.returncode = os.waitstatus_to_exitcode(status)


class Forker:
    """The process that forks; it ends with the tests."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._address = str(folder / "socket")
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, str(HERE), self._address], env=environment, start_new_session=True
        )

    def start(
        self, words: list[str], *, cwd: Path, environment: dict[str, str], stdin: bytes = b""
    ) -> Forked:
        """Run `mvw` with these words."""
        self._count += 1
        given, out, err = (self._folder / f"{self._count}.{name}" for name in ("in", "out", "err"))
        given.write_bytes(stdin)
        connection = self._connect()
        files = [str(given), str(out), str(err)]
        order = {"words": words, "cwd": str(cwd), "environment": environment, "files": files}
        connection.sendall(json.dumps(order).encode() + b"\n")
        pid = int(connection.recv(64))
        return Forked(pid, _connection=connection, _files=(out, err))

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _connect(self) -> socket.socket:
        for _ in range(1200):
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self._address)
                return connection
            except OSError:
                connection.close()
                assert self._process.poll() is None, "the process that forks has died"
                time.sleep(0.05)
        raise AssertionError("the process that forks does not answer")


def _serve(address: str) -> None:
    from importlib import import_module

    for name in _MODULES:
        import_module(name)
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{address}.new")
    server.listen()
    os.rename(f"{address}.new", address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    server.settimeout(2)
    parent = os.getppid()
    while os.getppid() == parent:  # the tests may be killed
        try:
            connection, _ = server.accept()
        except TimeoutError:
            continue
        connection.setblocking(True)
        if os.fork() == 0:
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _supervise(connection)
        connection.close()


def _supervise(connection: socket.socket) -> None:
    order = json.loads(connection.makefile("rb").readline())
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(order)
    connection.sendall(str(pid).encode())
    _, status = os.waitpid(pid, 0)
    with suppress(OSError):  # whoever started it may have gone
        connection.sendall(str(status).encode())
    os._exit(0)


def _become(order: dict[str, Any]) -> None:
    """Be the process that was asked for."""
    import atexit
    import threading

    os.setsid()
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    for number, name in enumerate(order["files"]):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(name, flags), number)
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 - as long as the process
    sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
    from mvw_cli.__main__ import main

    code = 1
    try:
        code = main(order["words"])
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
