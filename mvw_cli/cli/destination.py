"""Where a result goes: stdout, or a file that is replaced as a whole or not at all.

What can be known to fail is found out before anything is computed. It does not know what the
result is.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from mvw_cli import console
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.printable import printable


def check_destination(path: str | None) -> None:
    """Refuse a file that could not be written later; leaves no trace.

    Raises:
        UsageProblem: it is a folder, its folder is missing, or permissions forbid it.
    """
    if path is None or path == "-":
        return
    try:
        _check(path, Path(os.path.realpath(path)))
    except OSError as error:  # a name that is too long, a folder that may not be searched
        hint = "mvw infer --help"
        raise _unwritable(path, error.strerror or str(error), hint) from None


def _check(path: str, target: Path) -> None:
    folder = target.parent
    quoted = shlex.quote(str(folder))
    if target.is_dir():
        raise _unwritable(path, "it is a folder", f"ls {shlex.quote(path)}")
    if not folder.is_dir():
        raise _unwritable(path, f"there is no folder {folder}", f"mkdir -p {quoted}")
    if target.exists() and not os.access(target, os.W_OK):
        raise _unwritable(path, "permission denied", f"chmod u+w {shlex.quote(str(target))}")
    if _is_special(target):
        return
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        cause = f"cannot write into {folder}: {error.strerror}"
        raise _unwritable(path, cause, f"ls -ld {quoted}") from None


def deliver(text: str, path: str | None) -> None:
    """Write a result to its destination; what a file does not take goes to stdout instead.

    Raises:
        MvwError: the file could not be written; the result is on stdout.
    """
    if path is None or path == "-":
        _to_stdout(text)
        return
    try:
        _replace(Path(os.path.realpath(path)), text)
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


def _replace(target: Path, text: str) -> None:
    """Write beside the target, then rename, so that nobody ever finds half a file."""
    data = (text + "\n" if text else "").encode(errors="backslashreplace")
    if _is_special(target):  # /dev/null must stay what it is
        target.write_bytes(data)
        return
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.chmod(name, _mode(target))
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _mode(target: Path) -> int:
    """Permissions of the file that is replaced, or those of any new file."""
    with suppress(OSError):
        return stat.S_IMODE(target.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _is_special(target: Path) -> bool:
    return target.exists() and not target.is_file()


def _unwritable(path: str, cause: str, hint: str) -> UsageProblem:
    return UsageProblem(f"Cannot write {path}", cause=cause, hint=hint)
