"""Processes that this one starts: deaf to the terminal, and never outliving their parent.

Ctrl-C and SIGTERM reach the whole process group; what they mean is for the parent to decide.
"""

from __future__ import annotations

import os
import pickle
import signal
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children, resource_tracker

from mvw_cli.errors import MvwError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """In the parent: start a process with its signals blocked, until it ignores them itself."""
    resource_tracker.ensure_running()  # it is started with the first process, and unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def be_quiet() -> None:
    """In the process: ignore signals that are meant for the parent, write nothing to its stdout,
    and show no warnings.
    """
    with suppress(OSError):
        os.dup2(2, 1)
    for ignored in _SIGNALS:
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    warnings.simplefilter("ignore")  # the parent has told them, and would tell them again


def kill_children() -> None:
    """End what this process has started: vLLM's engine, which follows it only once it is up, and
    until then waits for minutes for who does not answer any more.
    """
    for child in active_children():
        child.kill()


def exit_now() -> None:
    """In the process: end whatever it is doing; it holds nothing that needs tidying up."""
    kill_children()
    os.kill(os.getpid(), signal.SIGKILL)


def exit_reason(code: int) -> str:
    """Describe how a process with this exit code ended, as part of a sentence."""
    if code >= 0:
        return f"ended by itself with exit code {code}"
    number = signal.Signals(-code)
    why = ", as the system does where memory runs out" if number == signal.SIGKILL else ""
    return f"was killed by {number.name}{why}"


def portable(error: Exception) -> Exception:
    """Make an error one that another process can raise, with its traceback as a note.

    Of those that can't be pickled, what a user is told remains.
    """
    trace = "".join(traceback.format_exception(error)).rstrip()
    try:
        error.add_note(f"In the worker:\n{trace}")
        again = pickle.loads(pickle.dumps(error))
        if type(again) is type(error) and str(again) == str(error):
            return error
    except Exception:  # whatever their __reduce__ or __init__ raises
        pass
    if isinstance(error, MvwError):
        told = MvwError(error.message, cause=error.cause, hint=error.hint)
        told.exit_code = error.exit_code
        return told
    return RuntimeError(f"{type(error).__name__}: {error}")
