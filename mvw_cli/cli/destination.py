"""Where a result goes: stdout, or a file that is replaced as a whole or not at all.

What can be known to fail is found out before anything is computed.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from mvw_cli import console
from mvw_cli.errors import MvwError
from mvw_cli.files import check_writable, replacing
from mvw_cli.text import printable


def check_destination(path: str | None, help_command: str) -> None:
    """Refuse a file that could not be written later; leaves no trace.

    Raises:
        UsageProblem: it is a folder, its folder is missing, or permissions forbid it.
    """
    if path is None or path == "-":
        return
    check_writable(path, help_command)


def deliver(text: str, path: str | None) -> None:
    """Write a result to its destination; what a file does not take goes to stdout instead.

    Raises:
        MvwError: the file could not be written; the result is on stdout.
    """
    if path is None or path == "-":
        _to_stdout(text)
        return
    try:
        with replacing(Path(os.path.realpath(path))) as file:
            file.write((text + "\n" if text else "").encode(errors="backslashreplace"))
    except OSError as error:
        _to_stdout(text)
        raise MvwError(
            f"Cannot write {path}",
            cause=f"{error.strerror or error}; the result was printed instead",
            hint=f"df -h {shlex.quote(os.path.dirname(os.path.realpath(path)))}",
        ) from None


def _to_stdout(text: str) -> None:
    if not text:
        return
    # A file gets what the model wrote; a terminal must not obey it.
    safe = printable(text) if console.is_terminal(sys.stdout) else text
    try:
        console.write(safe)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What stays in the buffer would fail again, with a traceback, when Python shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stderr.write(printable(text) + "\n")
        raise MvwError(
            "Cannot write to stdout",
            cause=f"{error.strerror or error}; the result is on stderr",
            hint="df -h .",
        ) from None
