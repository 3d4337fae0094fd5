"""What is left to do of a work list: the items that the log has no record of.

Images are hashed ahead by threads of their own, since content decides, and given up where that
takes too long: then the item is left to whoever reads it for good, and says what is wrong.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING

from mvw_cli.batch.items import Item
from mvw_cli.batch.source.reading import hash_images
from mvw_cli.errors import BadImage

if TYPE_CHECKING:
    from mvw_cli.batch.store.log import RecordLog
    from mvw_cli.batch.store.worklist import WorkList

_WINDOW = 4
"""Items hashed ahead, for each thread."""


def pending(
    worklist: WorkList,
    log: RecordLog,
    *,
    threads: int,
    timeout_s: float,
    skipped: Callable[[], None],
) -> Iterator[Item]:
    """Yield the items that have no record, in order.

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


class _Hashing:
    """One item, and what its images' hashes turn out to be."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.hashes: list[str] | None = None
        self.done = threading.Event()

    def work(self) -> None:
        try:
            self.hashes = hash_images(self.item)
        except BadImage:
            self.hashes = None
        finally:
            self.done.set()


def _hashed(
    items: Iterable[Item], threads: int, timeout_s: float
) -> Iterator[tuple[Item, list[str] | None]]:
    """Yield items with the SHA-256 of each image; None where they can't be had in time."""
    todo: SimpleQueue[_Hashing | None] = SimpleQueue()
    window: deque[_Hashing] = deque()
    workers = 0

    def more() -> None:
        nonlocal workers
        workers += 1
        # Not a pool of the library: it would wait for a thread that hangs when Python ends.
        threading.Thread(target=_work, args=(todo,), name="mvw-hash", daemon=True).start()

    for _ in range(threads):
        more()
    try:
        source = iter(items)
        while True:
            while len(window) < _WINDOW * threads and (item := next(source, None)) is not None:
                window.append(_Hashing(item))
                todo.put(window[-1])
            if not window:
                return
            oldest = window.popleft()
            if not oldest.done.wait(timeout_s):
                more()  # one that hangs works no more
            yield oldest.item, oldest.hashes
    finally:
        for _ in range(workers):
            todo.put(None)


def _work(todo: SimpleQueue[_Hashing | None]) -> None:
    while (one := todo.get()) is not None:
        one.work()
