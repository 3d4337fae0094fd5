"""A log opened for one writer: locked, and mended where a crash has damaged it.

It does not know what the records say.
"""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvw_cli.batch.store.lines import Line, not_a_log, read_lines, starts_like_a_log
from mvw_cli.batch.store.sidecar import sidecar_path
from mvw_cli.errors import UsageProblem
from mvw_cli.files import mode_of, sync_folder, unwritable

_ADDED = len("..rewrite")
"""Bytes that the longest name beside a log adds to its own; `.run.json` is as long."""


@dataclass(slots=True)
class Damage:
    """What is wrong with a log, as far as it has been read."""

    junk: int = 0
    """Lines that hold something else than a record."""
    tail: Line | None = None
    """The last line, where its end is missing."""

    def see(self, line: Line) -> None:
        """Look at the next line."""
        self.tail = None if line.closed else line
        if line.junk and (line.closed or line.record is not None):
            self.junk += 1


def open_locked(path: Path, name: str) -> tuple[int, bool]:
    """Open a log for reading and appending as its only writer; make it where it is missing.

    Returns:
        The descriptor, and whether the file system knows locks.

    Raises:
        UsageProblem: another process writes to it, or it can't be opened.
    """
    if len(os.fsencode(path.name)) + _ADDED > 255:
        raise unwritable(name, "its name is too long", "mvw batch --help")
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            hint = f"ls -l {shlex.quote(name)}"
            raise unwritable(name, error.strerror or str(error), hint) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UsageProblem(
                f"{name} is being written by another process",
                cause="a log has one writer at a time; shards write to files of their own",
                hint=f"fuser -v {shlex.quote(name)}",
            ) from None
        except OSError:  # a file system without locks
            return descriptor, False
        if _is_at(descriptor, path):
            return descriptor, True
        os.close(descriptor)  # whoever had the lock has put another file in its place


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def inspect(path: Path, name: str, see: Callable[[dict[str, Any]], object]) -> Damage:
    """Read a log from start to end.

    Args:
        see: gets each record.

    Raises:
        UsageProblem: it is a file of something else.
    """
    damage = Damage()
    found = False
    with path.open("rb") as file:
        for line in read_lines(file, name):
            damage.see(line)
            if line.record is not None:
                found = True
                see(line.record)
        file.seek(0)
        if (
            not found
            and (damage.junk or damage.tail)
            and not starts_like_a_log(file.read(100))
            and not sidecar_path(path).exists()
        ):
            raise not_a_log(name, "it holds no record")
    return damage


def mend(path: Path, descriptor: int, damage: Damage, name: str) -> tuple[int, list[str]]:
    """Take out what is damaged; return the descriptor to go on with, and what was done.

    Raises:
        OSError: the disk is full, or worse; the log is as it was.
    """
    told = []
    tail = damage.tail
    if damage.junk:
        descriptor = rewrite(path, descriptor, name, keep=lambda record: True)
        lines = "1 damaged line was" if damage.junk == 1 else f"{damage.junk} damaged lines were"
        told.append(f"{name}: {lines} moved to {name}.damaged")
    elif tail is not None and tail.record is None:
        os.ftruncate(descriptor, tail.start)
        os.fsync(descriptor)
    elif tail is not None:
        os.write(descriptor, b"\n")
        os.fsync(descriptor)
    if tail is not None and tail.record is None:
        told.append(f"{name}: the last line was cut, and has been taken off")
    return descriptor, told


def rewrite(
    path: Path, descriptor: int, name: str, *, keep: Callable[[dict[str, Any]], bool]
) -> int:
    """Put a log with fewer records in the place of this one; damage goes to `<log>.damaged`.

    Returns:
        A descriptor of the new file, which has the lock; the old one is closed.

    Raises:
        OSError: it can't be written; the log is as it was.
    """
    beside = path.with_name(f".{path.name}.rewrite")
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    new = os.open(beside, flags, 0o600)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with path.open("rb") as old, open(new, "wb", closefd=False) as file:
            for line in read_lines(old, name):
                if line.record is not None and keep(line.record):
                    file.write(line.text)
                if line.junk and (line.closed or line.record is not None):
                    _put_aside(path, line.junk)
        os.fchmod(new, mode_of(path))
        os.fsync(new)
        os.replace(beside, path)
    except BaseException:
        os.close(new)
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    os.close(descriptor)
    return new


def _put_aside(path: Path, junk: bytes) -> None:
    with path.with_name(f"{path.name}.damaged").open("ab") as file:
        file.write(junk if junk.endswith(b"\n") else junk + b"\n")
        file.flush()
        os.fsync(file.fileno())
