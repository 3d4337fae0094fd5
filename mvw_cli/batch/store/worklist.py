"""The items of one run, each once and in order, and which of them the log has no record of."""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue

from mvw_cli.batch.items import ImageRef, Item, shard_of
from mvw_cli.batch.source.reading import hash_images
from mvw_cli.batch.store.log import RecordLog
from mvw_cli.batch.store.record import clean, digest
from mvw_cli.errors import BadImage, UsageProblem

_PAGE = 256
"""Items that are packed together: paths are much alike, and take a tenth of their length."""
_WINDOW = 4
"""Items hashed ahead, for each thread."""


class WorkList:
    """What is to be done. Once made, any number of threads may iterate, count and ask.

    An item takes some 120 bytes of memory: a digest of its id, and the rest of it packed.
    """

    def __init__(
        self,
        items: Iterable[Item],
        *,
        limit: int | None = None,
        shard: tuple[int, int] | None = None,
    ) -> None:
        """List the items.

        Args:
            limit: keep the first so many; the rest is not even listed.
            shard: `(i, n)` with 0 ≤ i < n keeps the items whose `shard_of` is i. It divides what
                the limit has left, so that n shards together do what one run would.

        Raises:
            UsageProblem: two different items share an id.
        """
        self._pages: list[bytes] = []
        self._page: list[Item] = []
        self._length = 0
        # By digest of the id: the number of its page; None for items of other shards.
        self._ids: dict[bytes, int | None] = {}
        # Ids as records have them, where they differ: see `clean`.
        self._cleaned: set[bytes] = set()
        if limit == 0:
            return
        for item in items:
            self._add(item, shard is None or shard_of(item.id, shard[1]) == shard[0])
            if len(self._ids) == limit:
                break
        self._pack()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        for page in self._pages:
            yield from _unpacked(page)

    def holds(self, id: bytes) -> bool:
        """Whether an item was listed, in this shard or in another, by the `digest` of its id."""
        return id in self._ids or id in self._cleaned

    def _add(self, item: Item, ours: bool) -> None:
        """Store an item; of another shard's only that it is there."""
        name = digest(item.id)
        if name in self._ids:
            self._check_repeat(item, self._ids[name])
            return
        self._ids[name] = len(self._pages) if ours else None
        cleaned = clean(item.id)
        if cleaned != item.id:
            self._cleaned.add(digest(cleaned))
        if ours:
            self._length += 1
            self._page.append(item)
            if len(self._page) == _PAGE:
                self._pack()

    def _pack(self) -> None:
        rows = [
            [one.id, [[i.path, i.row, i.column] for i in one.images], one.question, one.reference]
            for one in self._page
        ]
        self._pages.append(zlib.compress(json.dumps(rows).encode(), level=1))
        self._page.clear()

    def _check_repeat(self, item: Item, page: int | None) -> None:
        """Let the same item pass a second time, and refuse another of the same name."""
        if page is None:
            return
        listed = self._page if page == len(self._pages) else _unpacked(self._pages[page])
        other = next(one for one in listed if one.id == item.id)
        if item.question == other.question and _real(item) == _real(other):
            return
        one, two = (", ".join(map(str, images)) for images in (other.images, item.images))
        raise UsageProblem(
            f"Two items have the id {item.id}",
            cause=f"one is {one}, the other {two}",
            hint="mvw batch --help",
        )


def pending(
    worklist: WorkList,
    log: RecordLog,
    *,
    threads: int,
    timeout_s: float,
    skipped: Callable[[], None],
) -> Iterator[Item]:
    """Yield the items that have no record, in order.

    Content decides: images are hashed ahead, by threads of their own. What can't be read in time
    is left to who reads it for good, and tells what is wrong.

    Args:
        skipped: called for each of the others.
    """
    if not (log.done or log.failed):
        yield from worklist
        return

    def unsure() -> Iterator[Item]:
        for item in worklist:
            if log.has_failed(item):
                skipped()
            else:
                yield item

    for item, hashes in _hashed(unsure(), threads, timeout_s):
        if hashes is not None and log.is_done(item, hashes, worklist.holds):
            skipped()
        else:
            yield item


def _hashed(
    items: Iterable[Item], threads: int, timeout_s: float
) -> Iterator[tuple[Item, list[str] | None]]:
    """Yield items with the SHA-256 of each image; None where they can't be had in time."""
    todo: SimpleQueue[tuple[Item, Future[list[str] | None]] | None] = SimpleQueue()
    window: deque[tuple[Item, Future[list[str] | None]]] = deque()
    workers = 0

    def work() -> None:
        while (one := todo.get()) is not None:
            item, future = one
            try:
                future.set_result(hash_images(item))
            except BadImage:
                future.set_result(None)

    def start() -> None:
        nonlocal workers
        workers += 1
        # Not a pool of the library: it would wait for a thread that hangs when Python ends.
        threading.Thread(target=work, name="mvw-hash", daemon=True).start()

    for _ in range(threads):
        start()
    try:
        source = iter(items)
        while True:
            while len(window) < _WINDOW * threads and (item := next(source, None)) is not None:
                window.append((item, Future()))
                todo.put(window[-1])
            if not window:
                return
            oldest, future = window.popleft()
            try:
                hashes = future.result(timeout_s)
            except TimeoutError:
                hashes = None
                start()  # one that hangs works no more
            yield oldest, hashes
    finally:
        for _ in range(workers):
            todo.put(None)


def _unpacked(page: bytes) -> Iterator[Item]:
    for id, images, question, reference in json.loads(zlib.decompress(page)):
        yield Item(id, tuple(ImageRef(*image) for image in images), question, reference)


def _real(item: Item) -> list[ImageRef]:
    return [ImageRef(os.path.realpath(i.path), i.row, i.column) for i in item.images]
