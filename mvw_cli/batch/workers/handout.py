"""Which item goes to which worker, and what becomes of those that a dead worker held.

Items come from one iterator, in a thread of its own, since it may have to read files to find out
what is done already. A worker that dies loses nothing: what it held is given to others, and mixed
with other items, for a death is rarely an item's fault. Those that were held at two deaths are
suspected; they are served at the end, each alone in its worker. One that is alone at a second
death has killed it, and is done with. It does not know what workers are.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from mvw_cli.batch.items import Item

SUSPECTED = 2
"""Deaths after which an item is given out alone."""
_READY = 16
"""Items that are fetched before somebody wants them."""
_GRACE_S = 2.0
"""How long the end waits for an iterator that is busy."""


class Feeder:
    """Fetches items ahead in the background. A context manager."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._ready: deque[Item] = deque()
        self._changed = threading.Condition()
        self._ended = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="mvw-feeder", daemon=True)
        self.fault: BaseException | None = None
        """What the iterator raised instead of ending."""

    @property
    def exhausted(self) -> bool:
        with self._changed:
            return self._ended and not self._ready

    def take(self) -> Item | None:
        """Return the next item; None if there is none, or none yet."""
        with self._changed:
            if not self._ready:
                return None
            self._changed.notify_all()
            return self._ready.popleft()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(_GRACE_S)

    def _run(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or len(self._ready) < _READY)
                    if self._stopped:
                        return
                    self._ready.append(item)
        except BaseException as error:  # for the thread that takes
            self.fault = error
        finally:
            with self._changed:
                self._ended = True


class Handout:
    """Who holds which items. Workers are known by their numbers."""

    def __init__(self, feed: Feeder) -> None:
        self._feed = feed
        self._held: dict[int, dict[str, Item]] = {}
        self._returned: deque[Item] = deque()
        self._suspected: deque[Item] = deque()
        self._deaths: dict[str, int] = {}

    @property
    def finished(self) -> bool:
        """Whether every item is done with."""
        waiting = self._returned or self._suspected or any(self._held.values())
        return not waiting and self._feed.exhausted

    @property
    def waits(self) -> bool:
        """Whether there will be items, but none is there yet."""
        return not (self._returned or self._suspected or self._feed.exhausted)

    def holds(self, worker: int) -> int:
        return len(self._held.get(worker, ()))

    def next_for(self, worker: int) -> Item | None:
        """Choose an item for a worker, which holds it from now on."""
        held = self._held.setdefault(worker, {})
        if any(self._deaths.get(id, 0) >= SUSPECTED for id in held):
            return None
        item = self._returned.popleft() if self._returned else self._feed.take()
        if item is None and self._suspected and not held and self._feed.exhausted:
            item = self._suspected.popleft()
        if item is not None:
            held[item.id] = item
        return item

    def done(self, worker: int, id: str) -> int | None:
        """Strike an item out; return at how many deaths it was held, or None: it was not held."""
        if self._held.get(worker, {}).pop(id, None) is None:
            return None
        return self._deaths.pop(id, 0)

    def died(self, worker: int) -> tuple[int, tuple[Item, int] | None]:
        """Take back what a dead worker held.

        Returns:
            How many items it held, and the one that has killed it with the number of deaths, if
            there is one; that one is done with.
        """
        held = list(self._held.pop(worker, {}).values())
        for item in held:
            self._deaths[item.id] = self._deaths.get(item.id, 0) + 1
        if len(held) == 1 and self._deaths[held[0].id] >= SUSPECTED:
            return 1, (held[0], self._deaths.pop(held[0].id))
        for item in held:
            suspected = self._deaths[item.id] >= SUSPECTED
            (self._suspected if suspected else self._returned).append(item)
        return len(held), None
