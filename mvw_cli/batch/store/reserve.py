"""What helps when the disk is full: space kept in reserve, and a refuge elsewhere.

It does not know what is to be written.
"""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from mvw_cli.errors import MvwError
from mvw_cli.files import sync_folder

FULL = (errno.ENOSPC, errno.EDQUOT)
RESERVE_BYTES = 1024 * 1024
_PROBE = 256 * 1024
"""Bytes that a folder must have room for to be a refuge."""


class CannotRecord(MvwError):
    """A record could not be written to the log."""


class DiskFull(CannotRecord):
    """There is no space left for records."""


class Reserve:
    """Space that is kept until it is needed."""

    def __init__(self, path: Path) -> None:
        self.used = False
        """Whether it was needed."""
        self._path = path
        self._there = False

    def lay(self) -> None:
        """Take the space.

        Raises:
            OSError: it isn't there.
        """
        try:
            # Noise, because a file system may compress.
            with open(self._path, "wb") as file:
                file.write(os.urandom(RESERVE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self._path.unlink(missing_ok=True)
            raise
        self._there = True

    def spend(self) -> bool:
        """Give the space up for records; say whether there was any."""
        if not self._there:
            return False
        self.used = True
        self.drop()
        return True

    def drop(self) -> None:
        """Give the space back."""
        if self._there:
            self._there = False
            with suppress(OSError):
                self._path.unlink()
                sync_folder(self._path.parent)  # the blocks are free once this is on disk


def make_refuge() -> Path | None:
    """Make an empty file for records that their log does not take, in a folder that has room."""
    folders = ["/dev/shm", str(Path.home())]
    with suppress(OSError):  # no folder for temporary files takes a file
        folders.insert(0, tempfile.gettempdir())
    for folder in folders:
        name = None
        try:
            descriptor, name = tempfile.mkstemp(".jsonl", "mvw-records-", folder)
            with open(descriptor, "wb") as file:
                file.write(bytes(_PROBE))
                file.flush()
                os.fsync(file.fileno())
                file.truncate(0)
            return Path(name)
        except OSError:
            if name is not None:
                Path(name).unlink(missing_ok=True)
    return None
