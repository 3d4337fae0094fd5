"""Files that are replaced as a whole or not at all, and what can be known beforehand."""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import BinaryIO

from mvw_cli.errors import UsageProblem


def check_writable(path: str) -> None:
    """Refuse a file that could not be written later; leaves no trace.

    Raises:
        UsageProblem: it is a folder, its folder is missing, or permissions forbid it.
    """
    target = Path(os.path.realpath(path))
    folder, quoted = target.parent, shlex.quote(str(target.parent))
    try:
        if target.is_dir():
            raise unwritable(path, "it is a folder", f"ls {shlex.quote(path)}")
        if target.exists() and not os.access(target, os.W_OK):
            raise unwritable(path, "permission denied", f"chmod u+w {shlex.quote(str(target))}")
        if not is_special(target):
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        if not os.path.isdir(folder):
            raise unwritable(path, f"there is no folder {folder}", f"mkdir -p {quoted}") from None
        cause = f"cannot write into {folder}: {error.strerror}"
        raise unwritable(path, cause, f"ls -ld {quoted}") from None


def check_not_input(outputs: Iterable[str | None], inputs: Iterable[str]) -> None:
    """Refuse to write over a file that is read, by whatever paths the two are given.

    Args:
        outputs: None and `-` are no files, and what is still to be made is none that is read.
        inputs: `-` is what standard input comes from. Not asked for where no output is there yet.

    Raises:
        UsageProblem: one of the outputs is one of the inputs.
    """
    there = {}
    for path in outputs:
        with suppress(OSError, ValueError):
            if path is not None and path != "-":
                status = os.stat(path)
                if stat.S_ISREG(status.st_mode):  # nothing else is replaced
                    there[status.st_dev, status.st_ino] = path
    for read in inputs if there else ():
        with suppress(OSError, ValueError):
            status = os.stat(0 if read == "-" else read)
            written = there.get((status.st_dev, status.st_ino))
            if written is not None:
                raise UsageProblem(
                    f"{written} is an input, and would be written over",
                    cause="input and output are the same file"
                    + ("" if read == written else f", which is read as {read}"),
                    hint=f"ls -li {shlex.quote(written)}",
                )


def free_name(path: str) -> str:
    """Name a file that holds nothing yet, for hints: the path, else with a number before its end.

    Nor does the log beside it, where it is to be a table.
    """
    stem, ending = os.path.splitext(path)
    names = chain([path], (f"{stem}-{number}{ending}" for number in count(2)))
    return next(one for one in names if not (_holds(one) or _holds(f"{one}.jsonl")))


def _holds(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except (OSError, ValueError):
        return os.path.lexists(path)


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """Write beside the target and rename, so that nobody ever finds half a file.

    What is special, as /dev/null, stays what it is and is written to.
    """
    if is_special(target):
        with target.open("wb") as file:
            yield file
        return
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode_of(target))
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make what was renamed or deleted in a folder last through a power cut."""
    with suppress(OSError):  # not every file system takes it
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def mode_of(target: Path) -> int:
    """Permissions of a file that is to be replaced, or those of any new file."""
    with suppress(OSError):
        return stat.S_IMODE(target.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def is_special(target: Path) -> bool:
    """Whether something is there that is no regular file."""
    return target.exists() and not target.is_file()


def unwritable(path: str, cause: str, hint: str) -> UsageProblem:
    """Return the error for a file that can't be written."""
    return UsageProblem(f"Cannot write {path}", cause=cause, hint=hint)
