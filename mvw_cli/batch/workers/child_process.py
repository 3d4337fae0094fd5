"""Processes that this one starts: deaf to the terminal, and never outliving their parent.

Ctrl-C and SIGTERM reach the whole process group; what they mean is for the parent to decide. It
does not know what the processes do.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def undisturbed() -> Iterator[None]:
    """In the parent: start a process with its signals blocked, until it has gone deaf."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def go_deaf() -> None:
    """In the process: ignore what is meant for the parent."""
    for ignored in _SIGNALS:
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def end_now() -> None:
    """In the process: end whatever it is doing; it holds nothing that needs tidying up."""
    os.kill(os.getpid(), signal.SIGKILL)


def how_it_ended(code: int) -> str:
    """Say of a process with this exit code how it came to its end, as part of a sentence."""
    if code >= 0:
        return f"ended by itself with exit code {code}"
    number = signal.Signals(-code)
    why = ", as the system does where memory runs out" if number == signal.SIGKILL else ""
    return f"was killed by {number.name}{why}"
