"""The items of one run, each once, in the order in which they were listed.

They lie in a temporary database, so that 100,000 items take no more memory than 100. The list
does not know where items come from, nor which of them are done.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.store.scratch import no_room, scratch, to_bytes, to_text
from mvw_cli.errors import UsageProblem

_SCHEMA = "CREATE TABLE item (place INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, body BLOB)"
_PAGE = 256


class WorkList:
    """What is to be done. Any number of threads may iterate, count and ask at the same time."""

    def __init__(self) -> None:
        self._database = scratch(_SCHEMA)
        self._lock = threading.Lock()
        self._length = 0

    @classmethod
    def of(
        cls,
        items: Iterable[Item],
        *,
        limit: int | None = None,
        shard: tuple[int, int] | None = None,
    ) -> Self:
        """List the items.

        Args:
            limit: keep the first so many; the rest is not even listed.
            shard: `(i, n)` with 0 ≤ i < n keeps the items whose `shard_of` is i. It divides what
                the limit has left, so that n shards together do what one run would.

        Raises:
            UsageProblem: two different items share an id.
            MvwError: the folder for temporary files is full or read-only.
        """
        worklist = cls()
        try:
            worklist._fill(items, limit, shard)
        except sqlite3.Error as error:
            worklist.close()
            raise no_room(error) from None
        except BaseException:
            worklist.close()
            raise
        return worklist

    def _fill(
        self, items: Iterable[Item], limit: int | None, shard: tuple[int, int] | None
    ) -> None:
        listed = 0
        if limit == 0:
            return
        for item in items:
            if not self._add(item, shard is None or shard_of(item.id, shard[1]) == shard[0]):
                continue
            listed += 1
            if listed == limit:
                break

    def _add(self, item: Item, ours: bool) -> bool:
        """Store an item; of another shard's only where it was found, for `holds` and repeats."""
        body = _dump(item)
        row = (to_bytes(item.id), body if ours else None)
        try:
            self._database.execute("INSERT INTO item (id, body) VALUES (?, ?)", row)
        except sqlite3.IntegrityError:
            self._check_repeat(item, body)
            return False
        self._length += ours
        return True

    def _check_repeat(self, item: Item, body: bytes) -> None:
        """Let the same item pass a second time, and refuse another of the same name."""
        (known,) = self._database.execute(
            "SELECT body FROM item WHERE id = ?", (to_bytes(item.id),)
        ).fetchone()
        if known is None or known == body:
            return
        other = _load(known)
        if item.question == other.question and _real(item) == _real(other):
            return
        places = (", ".join(map(str, one.images)) for one in (other, item))
        raise UsageProblem(
            f"Two items have the id {item.id}",
            cause="one is {}, the other {}".format(*places),
            hint="mvw batch --help",
        )

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        place = 0
        while True:
            with self._lock:
                page = self._database.execute(
                    "SELECT place, body FROM item WHERE place > ? AND body IS NOT NULL"
                    f" ORDER BY place LIMIT {_PAGE}",
                    (place,),
                ).fetchall()
            if not page:
                return
            place = page[-1][0]
            for _, body in page:
                yield _load(body)

    def holds(self, id: str) -> bool:
        """Say whether an item of that id was listed, in this shard or in another."""
        with self._lock:
            found = self._database.execute("SELECT 1 FROM item WHERE id = ?", (to_bytes(id),))
            return found.fetchone() is not None

    def close(self) -> None:
        """Forget the items."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def shard_of(id: str, shards: int) -> int:
    """Say which of 0 … shards - 1 an item belongs to: the same on every machine."""
    return int.from_bytes(hashlib.sha256(to_bytes(id)).digest()) % shards


def _dump(item: Item) -> bytes:
    images = [[image.path, image.row, image.column] for image in item.images]
    return to_bytes(json.dumps([item.id, images, item.question, item.reference]))


def _load(body: bytes) -> Item:
    id, images, question, reference = json.loads(to_text(body))
    return Item(id, tuple(ImageRef(*image) for image in images), question, reference)


def _real(item: Item) -> list[ImageRef]:
    return [ImageRef(os.path.realpath(i.path), i.row, i.column) for i in item.images]
