"""A file that lines are appended to, each whole or not at all, and synced in groups.

A reserve of space beside it is given up when the disk is full, so that what is under way can
still be written. What the disk does not take at all goes to a file in the folder for temporary
files. This module does not know what the lines are.
"""

from __future__ import annotations

import os
import shlex
import threading
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from mvw_cli.batch.store.reserve import FULL, CannotRecord, DiskFull, Reserve, make_refuge

GROUP = 64
"""Lines after which the file is synced at the latest."""
INTERVAL_S = 1.0
"""Seconds after which a line is synced at the latest."""


class DurableFile:
    """Appends lines from any thread; another thread syncs them."""

    def __init__(self, name: str, descriptor: int, reserve: Reserve) -> None:
        """Append to an open file, opened with O_APPEND, which ends with a whole line.

        Args:
            name: of the file, for messages.
        """
        self._name = name
        self._reserve = reserve
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._unsynced: list[bytes] = []
        self._error: OSError | None = None
        self._told = False
        self._spill: Path | None = None
        self._spilled = self._lost = 0
        self._closed = False
        self._state = threading.Condition()
        self._disk = threading.Lock()
        self._syncer = threading.Thread(target=self._sync_groups, name="mvw-sync", daemon=True)
        self._syncer.start()

    def append(self, line: bytes) -> None:
        """Write a line; once this returns, the line outlives the process.

        Raises:
            DiskFull: no space is left, the reserve is used up; the line is in a temporary file.
            CannotRecord: anything else is wrong with the file; the same.
        """
        with self._state:
            if self._error is not None:
                self._keep([line])
                raise self._problem()
            self._unsynced.append(line)
            try:
                self._write(line)
            except OSError as error:
                self._break(error)
                raise self._problem() from None
            self._state.notify()

    def restart(self, descriptor: int) -> None:
        """Go on with another file, or with what was done to this one. Only before any line."""
        with self._state:
            self._descriptor = descriptor
            self._size = os.fstat(descriptor).st_size

    def give_up(self, error: OSError, line: bytes) -> NoReturn:
        """Write nothing any more, for a reason of the caller's; as if `append` had failed.

        Raises:
            CannotRecord: as `append`.
        """
        with self._state:
            self._unsynced.append(line)
            self._break(error)
            raise self._problem() from None

    def flush(self) -> None:
        """Sync now: what was appended outlives a power cut.

        Raises:
            CannotRecord: as `append`.
        """
        self._sync()
        with self._state:
            if self._error is not None:
                raise self._problem()

    def close(self) -> None:
        """Sync and stop; the file itself stays open.

        Raises:
            CannotRecord: as `append`, unless that has been raised before.
        """
        with self._state:
            self._closed = True
            self._state.notify()
        self._syncer.join()
        self._sync()
        if self._error is not None and not self._told:
            raise self._problem()

    def _write(self, line: bytes) -> None:
        while True:
            try:
                _write_all(self._descriptor, line)
            except OSError as error:
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self._size)
                if error.errno in FULL and self._reserve.spend():
                    continue
                raise
            self._size += len(line)
            return

    def _sync_groups(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._unsynced or self._closed)
                if self._closed:
                    return
                self._state.wait_for(
                    lambda: len(self._unsynced) >= GROUP or self._closed, timeout=INTERVAL_S
                )
            self._sync()
            if self._error is not None:
                return

    def _sync(self) -> None:
        with self._disk:
            with self._state:
                count = len(self._unsynced)
                if not count or self._error is not None:
                    return
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                with self._state:
                    self._rewrite_unsynced(error)
                return
            with self._state:
                del self._unsynced[:count]

    def _rewrite_unsynced(self, error: OSError) -> None:
        """Some file systems, as NFS, say only on syncing that there was no space."""
        if error.errno in FULL and self._reserve.spend():
            try:
                self._size -= sum(map(len, self._unsynced))
                os.ftruncate(self._descriptor, self._size)
                for line in self._unsynced:
                    self._write(line)
                os.fsync(self._descriptor)
                self._unsynced.clear()
                return
            except OSError as again:
                error = again
        self._break(error)

    def _break(self, error: OSError) -> None:
        self._error = error
        self._keep(self._unsynced)

    def _keep(self, lines: list[bytes]) -> None:
        """Write lines that may not be in the file to a temporary one."""
        if self._spill is None:
            self._spill = make_refuge()
        try:
            if self._spill is None:
                raise OSError
            with self._spill.open("ab") as file:
                file.write(b"".join(lines))
                file.flush()
                os.fsync(file.fileno())
            self._spilled += len(lines)
        except OSError:
            self._lost += len(lines)

    def _problem(self) -> CannotRecord:
        self._told = True
        error = self._error
        assert error is not None
        kind = DiskFull if error.errno in FULL else CannotRecord
        parts = [error.strerror or str(error)]
        hint = f"df -h {shlex.quote(os.path.dirname(os.path.abspath(self._name)))}"
        if self._spilled:
            parts.append(f"{_records(self._spilled)} kept in {self._spill}, to be merged later")
            log = shlex.quote(self._name)
            hint = f"mvw merge {log} {shlex.quote(str(self._spill))} -o {log}"
        if self._lost:
            parts.append(f"{_records(self._lost)} lost, for no other folder has room")
        return kind(f"Cannot write {self._name}", cause="; ".join(parts), hint=hint)


def _records(count: int) -> str:
    return "1 record is" if count == 1 else f"{count} records are"


def _write_all(descriptor: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
