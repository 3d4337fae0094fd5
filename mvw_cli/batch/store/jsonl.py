"""A JSON Lines file with one writer: locked, appended to line by line, synced every second.

A line is in the file as a whole or not at all. One that a full disk has cut is taken off at once;
one that a kill or a power cut has cut is taken off by who opens the file again, with `truncate`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.files import mode_of, sync_folder, unwritable

INTERVAL_S = 1.0
"""Seconds after which a line is synced at the latest."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ROOM_BYTES = 1024 * 1024


class CannotRecord(MvwError):
    """A file that records go to can't be written."""


class DiskFull(CannotRecord):
    """There is no space left for records."""


def cannot_write(name: str, error: OSError, *consequences: str) -> CannotRecord:
    """Turn what the system says about a file into an error for the user."""
    kind = DiskFull if error.errno in _FULL else CannotRecord
    folder = shlex.quote(os.path.dirname(os.path.realpath(name)))
    cause = "; ".join([error.strerror or str(error), *consequences])
    return kind(f"Cannot write {name}", cause=cause, hint=f"df -h {folder}")


class JsonlFile:
    """An open file. `append` and `flush` may come from any thread."""

    def __init__(self, path: Path, name: str) -> None:
        """Open the file, or make it, as its only writer; messages call it `name`.

        Raises:
            UsageProblem: another process writes to it, or it can't be opened.
        """
        self.path, self.name = path, name
        self.keep = path.exists()
        """Whether the file stays when it is closed. A new one stays once it has a line."""
        self.descriptor = _open_locked(path, name)
        self._lock, self._sync_lock = threading.Lock(), threading.Lock()
        self._syncer = threading.Thread(target=self._sync_regularly, name="mvw-sync", daemon=True)
        self._closing = threading.Event()
        self._unsynced = False
        self._error: OSError | None = None
        self._is_told = False

    def append(self, line: bytes, *, what: str = "the last line") -> None:
        """Write a line; once this returns, the line outlives the process.

        It outlives a power cut after `INTERVAL_S`, and once `flush` has returned.

        Args:
            line: its end included.
            what: names the line in the message of an error.

        Raises:
            DiskFull: no space is left; the file ends with the line before.
            CannotRecord: anything else is wrong with the file. After either, no line is taken.
        """
        with self._lock:
            try:
                if self._error is not None:
                    raise self._error
                self._write(line)
            except OSError as error:
                self._error, self._is_told = error, True
                raise cannot_write(self.name, error, f"{what} is not in it") from None
            self._unsynced = True
            if self._syncer.ident is None:
                self._syncer.start()

    def flush(self) -> None:
        """Sync: what was appended outlives a power cut.

        Raises:
            CannotRecord: it does not, or may not; unless `append` has told it.
        """
        self._sync()
        if self._error is not None and not self._is_told:
            self._is_told = True
            raise cannot_write(self.name, self._error, "its last lines may not be on disk")

    def truncate(self, size: int) -> None:
        """Drop what follows the first `size` bytes; OSError where that can't be done."""
        os.ftruncate(self.descriptor, size)
        os.fsync(self.descriptor)

    def rewrite(self, lines: Iterable[bytes]) -> None:
        """Put these lines in the place of the content, all of them or none. The lock stays."""
        draft = self.path.with_name(f".{self.path.name}.rewrite")
        new = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(new, "wb", closefd=False) as file:
                file.writelines(lines)
            os.fchmod(new, mode_of(self.path))
            os.fsync(new)
            os.replace(draft, self.path)
        except BaseException:
            os.close(new)
            draft.unlink(missing_ok=True)
            raise
        sync_folder(self.path.parent)
        with self._sync_lock:
            os.close(self.descriptor)
            self.descriptor, self.keep = new, True

    def check_room(self) -> None:
        """Refuse a disk that is full already, before anything expensive begins, with `DiskFull`."""
        found = os.fstatvfs(self.descriptor)
        # Some file systems tell nothing: they have no blocks at all.
        if found.f_blocks and found.f_bfree * found.f_frsize < _ROOM_BYTES:
            raise cannot_write(self.name, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def discard_if_empty(self) -> None:
        """Delete a file that was made here and has no line."""
        if not self.keep:
            with suppress(OSError):
                self.path.unlink()

    def close(self) -> None:
        """Sync and let go of the file. A new file without a line is not left behind."""
        if self.descriptor < 0:
            return
        self._closing.set()
        if self._syncer.ident is not None:
            self._syncer.join()
        try:
            self.flush()
        finally:
            self.discard_if_empty()
            os.close(self.descriptor)
            self.descriptor = -1

    def _write(self, line: bytes) -> None:
        size = os.fstat(self.descriptor).st_size
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self.descriptor, size)
            raise
        if not self.keep:
            self.keep = True
            sync_folder(self.path.parent)

    def _sync_regularly(self) -> None:
        while not self._closing.wait(INTERVAL_S) and self._error is None:
            self._sync()

    def _sync(self) -> None:
        with self._sync_lock:
            if not self._unsynced:
                return
            self._unsynced = False  # before: a line may come meanwhile
            try:
                os.fsync(self.descriptor)
            except OSError as error:  # NFS, for one, tells only now that the disk is full
                self._error = error


def _open_locked(path: Path, name: str) -> int:
    """Return a descriptor for reading and appending, locked where the file system knows locks."""
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
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # whoever had the lock has put another file in its place
