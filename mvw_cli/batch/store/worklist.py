"""The items of one run, each once and in order, and which of them the log has no record of."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue

from mvw_cli.batch.items import Item, shard_of
from mvw_cli.batch.source.reading import hash_images
from mvw_cli.batch.store.log import RecordLog
from mvw_cli.batch.store.record import clean
from mvw_cli.errors import BadImage, UsageProblem

_WINDOW = 4
"""Items hashed ahead, for each thread."""


class WorkList:
    """What is to be done. Once made, any number of threads may iterate, count and ask."""

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
        # By id, as records have it; None for items of other shards.
        self._listed: dict[str, Item | None] = {}
        self._length = 0
        for item in items:
            name = clean(item.id)
            if name in self._listed:
                _check_repeat(item, self._listed[name])
                continue
            is_ours = shard is None or shard_of(item.id, shard[1]) == shard[0]
            self._listed[name] = item if is_ours else None
            self._length += is_ours
            if len(self._listed) == limit:
                break

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        return (item for item in self._listed.values() if item is not None)

    def __contains__(self, id: object) -> bool:
        """Whether an item was listed, in this shard or in another, by its id in a record."""
        return id in self._listed


def _check_repeat(item: Item, other: Item | None) -> None:
    """Let the same item pass a second time, and refuse another of the same name."""
    if other is None or (item.images, item.question) == (other.images, other.question):
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
        if hashes is not None and log.is_done(item, hashes):
            skipped()
        else:
            yield item


def _hashed(
    items: Iterator[Item], threads: int, timeout_s: float
) -> Iterator[tuple[Item, list[str] | None]]:
    """Yield items with the SHA-256 of each image; None where they can't be had in time."""
    todo: SimpleQueue[tuple[Item, Future[list[str] | None]] | None] = SimpleQueue()
    window: deque[tuple[Item, Future[list[str] | None]]] = deque()
    started: list[threading.Thread] = []

    def work() -> None:
        while (one := todo.get()) is not None:
            item, future = one
            try:
                future.set_result(hash_images(item))
            except BadImage:
                future.set_result(None)

    def start() -> None:
        # Not a pool of the library: it would wait for a thread that hangs when Python ends.
        started.append(threading.Thread(target=work, name="mvw-hash", daemon=True))
        started[-1].start()

    for _ in range(threads):
        start()
    try:
        while True:
            for item in islice(items, _WINDOW * threads - len(window)):
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
        for _ in started:
            todo.put(None)
