"""The same measurement in a fresh process: no cell warms up, fills or fragments another's memory.

The process is spawned, since CUDA does not survive a fork, and ends with its parent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from signal import SIGKILL

from mvw_cli.bench.measure.arms import Job
from mvw_cli.bench.measure.cell import Measured, Progress, measure
from mvw_cli.errors import MvwError, OutOfMemory
from mvw_cli.machine.child_process import (
    be_quiet,
    exit_now,
    exit_reason,
    portable,
    signals_blocked,
)

_ASK_S = 0.1
"""How often the caller is asked whether to stop."""
_REAP_S = 5.0
_STOP = "stop"


def measure_apart(
    job: Job,
    *,
    progress: Progress = lambda text, done, total: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Measured:
    """Measure a cell in a process of its own, as `measure`; that it dies is an MvwError."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, job), name="mvw-profile")
    try:
        with signals_blocked():
            process.start()
    finally:
        theirs.close()  # else its end would not be noticed
    try:
        came = _wait(ours, process, job, progress, stopping)
        process.join(_REAP_S)  # so that it can tidy up what libraries have opened
    finally:
        ours.close()
        process.kill()
        process.join()
        process.close()
    if isinstance(came, Exception):
        raise came
    cell = None if came.cell is None else replace(came.cell, process="own")
    return replace(came, cell=cell)


def _wait(
    pipe: Connection,
    process: SpawnProcess,
    job: Job,
    progress: Progress,
    stopping: Callable[[], bool],
) -> Measured | Exception:
    told = False
    while True:
        if not told and stopping():
            told = True
            with suppress(OSError):  # the end of the pipe is met below
                pipe.send(_STOP)
        try:
            if not pipe.poll(_ASK_S):
                continue
            message = pipe.recv()
        except (EOFError, OSError):
            process.join()
            raise _died(process.exitcode or 0, job) from None
        match message:
            case (text, done, total):
                progress(text, done, total)
            case Measured() | Exception():
                return message


def _died(code: int, job: Job) -> MvwError:
    what = "The process that measured is no more."
    cause = f"It {exit_reason(code)}."
    if code == -SIGKILL:
        smaller = f"--batch {job.batch // 2}" if job.batch > 1 else "--dtype bfloat16"
        return OutOfMemory(what, cause=cause, hint=f"mvw profile {smaller}")
    return MvwError(what, cause=cause, hint="mvw profile --in-process")


def _main(connection: Connection, job: Job) -> None:
    be_quiet()
    stop = threading.Event()

    def listen() -> None:
        with suppress(EOFError, OSError):
            while connection.recv() == _STOP:
                stop.set()
        exit_now()

    threading.Thread(target=listen, name="mvw-orders", daemon=True).start()
    try:
        came: object = measure(
            job, progress=lambda *told: connection.send(told), stopping=stop.is_set
        )
    except Exception as error:
        came = portable(error)
    with suppress(OSError):
        connection.send(came)
