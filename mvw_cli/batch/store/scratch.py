"""A database for what would not fit in memory, gone with the process that made it.

Names are stored as bytes: a file's name need not be UTF-8, and a question file may hold halves of
surrogate pairs, which SQLite refuses as text.
"""

from __future__ import annotations

import sqlite3

from mvw_cli.errors import MvwError


def scratch(schema: str) -> sqlite3.Connection:
    """Open an empty database that spills to an unnamed temporary file.

    The file lies where TMPDIR says and has no name, so that nothing is left behind even by
    SIGKILL (sqlite.org/c3ref/open.html: an empty file name). One thread at a time may use it.
    """
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode=OFF")
    database.execute("PRAGMA synchronous=OFF")
    database.executescript(schema)
    return database


def no_room(error: sqlite3.Error) -> MvwError:
    """Say that the temporary file could not be written."""
    return MvwError(
        "The list of items cannot be kept in the folder for temporary files",
        cause=f"{error}; TMPDIR names the folder",
        hint="mvw batch --help",
    )


def to_bytes(text: str) -> bytes:
    """Encode any str, lone surrogates included."""
    return text.encode("utf-8", "surrogatepass")


def to_text(data: bytes) -> str:
    """Undo `to_bytes`."""
    return data.decode("utf-8", "surrogatepass")
