"""Which items have a record: a temporary database, so that any number takes little memory.

It does not know where records lie.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mvw_cli.batch.store.record import clean
from mvw_cli.batch.store.scratch import no_room, scratch, to_bytes, to_text

_SCHEMA = """
CREATE TABLE ok (
    key BLOB, id BLOB, asked BLOB, taken INTEGER DEFAULT 0, PRIMARY KEY (key, id)
) WITHOUT ROWID;
CREATE INDEX ok_asked ON ok (id, asked);
CREATE TABLE failed (
    id BLOB, asked BLOB, key BLOB, taken INTEGER DEFAULT 0, PRIMARY KEY (id, asked)
) WITHOUT ROWID;
CREATE INDEX failed_key ON failed (key);
"""
_ESCAPE = re.compile(r"\\u(dc[89a-f][0-9a-f])")


class Index:
    """What is known of records, each item once: success beats failure. Any thread may ask."""

    def __init__(self) -> None:
        self.done = 0
        """Answered items, by content and id."""
        self.failed = 0
        """Items that failed and have no answer, by id and question."""
        self._lock = threading.Lock()
        with _explained():
            self._database = scratch(_SCHEMA)

    def add(self, record: Mapping[str, Any]) -> bool:
        """Take a record in; say whether its item had none as good before.

        Raises:
            MvwError: the folder for temporary files is full.
        """
        id, asked = _names(record["id"], record["question"])
        with self._lock, _explained():
            if record["status"] == "ok":
                # SQLite's own words: OR IGNORE leaves a row of the same primary key as it is.
                insert = "INSERT OR IGNORE INTO ok (key, id, asked) VALUES (?, ?, ?)"
                added = self._database.execute(insert, (_blob(record["key"]), id, asked)).rowcount
                delete = "DELETE FROM failed WHERE id = ? AND asked = ?"
                self.failed -= self._database.execute(delete, (id, asked)).rowcount
                self.done += added
            elif self._has("ok WHERE id = ? AND asked = ?", id, asked):
                added = 0
            else:
                insert = "INSERT OR IGNORE INTO failed (id, asked, key) VALUES (?, ?, ?)"
                added = self._database.execute(insert, (id, asked, _blob(record["key"]))).rowcount
                self.failed += added
        return added == 1

    def take(self, record: Mapping[str, Any]) -> bool:
        """Say whether this record is the one of its item to be kept: true once per item."""
        id, asked = _names(record["id"], record["question"])
        if record["status"] == "ok":
            table, values = "ok SET taken = 1 WHERE key = ? AND id = ?", (_blob(record["key"]), id)
        else:
            table, values = "failed SET taken = 1 WHERE id = ? AND asked = ?", (id, asked)
        with self._lock, _explained():
            update = f"UPDATE {table} AND taken = 0"
            return self._database.execute(update, values).rowcount == 1

    def put_back(self) -> None:
        """Let every record be taken once again."""
        with self._lock, _explained():
            self._database.execute("UPDATE ok SET taken = 0")
            self._database.execute("UPDATE failed SET taken = 0")

    def holds(self, record: Mapping[str, Any]) -> bool:
        """Say whether the item has a record as good as this one."""
        id, asked = _names(record["id"], record["question"])
        with self._lock, _explained():
            if record["status"] == "ok":
                return self._has("ok WHERE key = ? AND id = ?", _blob(record["key"]), id)
            return any(
                self._has(f"{table} WHERE id = ? AND asked = ?", id, asked)
                for table in ("ok", "failed")
            )

    def is_done(self, key: str, id: str, listed: Callable[[str], bool]) -> bool:
        """Say whether an item needs no work; a record of a renamed file is claimed for it."""
        blob, name = _blob(key), to_bytes(clean(id))
        with self._lock, _explained():
            if any(
                self._has(f"{table} WHERE key = ? AND id = ?", blob, name)
                for table in ("ok", "failed")
            ):
                return True
            return any(self._claim(table, blob, listed) for table in ("ok", "failed"))

    def has_failed(self, id: str, question: str) -> bool:
        """Say whether an item of this id and question failed, and was not answered since."""
        with self._lock, _explained():
            return self._has("failed WHERE id = ? AND asked = ?", *_names(id, question))

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._database.close()

    @contextmanager
    def many(self) -> Iterator[None]:
        """Take many records in at once, which is faster."""
        with self._lock, _explained():
            self._database.execute("BEGIN")
        yield
        with self._lock, _explained():
            self._database.execute("COMMIT")

    def _has(self, what: str, *values: bytes | None) -> bool:
        found = self._database.execute(f"SELECT 1 FROM {what} LIMIT 1", values)
        return found.fetchone() is not None

    def _claim(self, table: str, key: bytes | None, listed: Callable[[str], bool]) -> bool:
        """Look for a record of this content whose item is not in the present work list."""
        while True:
            select = f"SELECT id FROM {table} WHERE key = ? AND taken = 0 LIMIT 1"
            found = self._database.execute(select, (key,)).fetchone()
            if found is None:
                return False
            # One of an item that is listed is never free: it is not looked at again, either.
            update = f"UPDATE {table} SET taken = 1 WHERE key = ? AND id = ?"
            self._database.execute(update, (key, found[0]))
            id = to_text(found[0])
            if not listed(id) and not listed(unclean(id)):
                return True


def unclean(id: str) -> str:
    """Undo `clean` for a file name that is not UTF-8."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), id)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise no_room(error) from None


def _names(id: str, question: str) -> tuple[bytes, bytes]:
    asked = hashlib.sha256(to_bytes(clean(question))).digest()[:16]
    return to_bytes(clean(id)), asked


def _blob(key: str | None) -> bytes | None:
    return None if key is None else to_bytes(key)
