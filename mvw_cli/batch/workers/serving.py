"""The far end: a model in another process, which serves what it is given.

It does not know how orders come and reports go (`child.py`, `ray.py`), nor of other workers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.server import State
from mvw_cli.batch.workers.messages import (
    Begin,
    Broken,
    Died,
    Done,
    Drain,
    Ended,
    Give,
    Loaded,
    Order,
    Report,
    Stands,
    Wants,
    portable,
)
from mvw_cli.batch.workers.worker import Job, Worker
from mvw_cli.engine.memory import lost_device

AHEAD = 2
"""Items that lie ready for the worker's readers, so that none waits for the way there and back."""

_Items = SimpleQueue[Item | None]


class Serving:
    """One worker, which orders are delivered to from another thread.

    Args:
        send: takes a report to whoever gave the orders; called from several threads.
        every_s: seconds between two reports of how things stand.
    """

    def __init__(self, job: Job, send: Callable[[Report], None], *, every_s: float) -> None:
        self._job, self._send, self._every_s = job, send, every_s
        self._begun: SimpleQueue[tuple[str, _Items]] = SimpleQueue()
        self._items: _Items = SimpleQueue()
        self._draining = threading.Event()

    def deliver(self, order: Order) -> None:
        """Take an order; returns at once."""
        match order:
            case Begin(run):
                self._items = SimpleQueue()
                self._draining.clear()
                self._begun.put((run, self._items))
            case Give(item):
                self._items.put(item)
            case Drain():
                self._draining.set()
                self._items.put(None)
            case _:
                self._items.put(None)

    def work(self) -> None:
        """Load the model and serve; returns when it is of no more use, which has been said."""
        try:
            worker = Worker(self._job)
        except Exception as error:
            self._send(Broken(portable(error), loading=True))
            return
        self._send(Loaded(worker.revision))
        while self._serve(worker, *self._begun.get()):
            pass

    def _serve(self, worker: Worker, run: str, items: _Items) -> bool:
        worker.state = State()
        self._send(Wants(AHEAD))
        try:
            with self._telling(worker):
                for record in worker.records(
                    self._taken(items), run=run, draining=self._draining.is_set
                ):
                    self._send(Done(record))
        except Exception as error:
            if lost_device(error):
                line = next(iter(str(error).splitlines()), type(error).__name__)
                self._send(Died(f"lost its device: {line}"))
            else:
                self._send(Broken(portable(error), loading=False))
            return False
        self._send(Ended())
        return True

    def _taken(self, items: _Items) -> Iterator[Item]:
        """Yield the items; for each that is taken, another one is wanted."""
        while (item := items.get()) is not None:
            self._send(Wants(1))
            yield item

    @contextmanager
    def _telling(self, worker: Worker) -> Iterator[None]:
        """Within it, and once at its end, tell how things stand."""
        over = threading.Event()

        def tell() -> None:
            while not over.wait(self._every_s):
                self._send(Stands(_snapshot(worker.state)))

        teller = threading.Thread(target=tell, name="mvw-teller", daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()
            self._send(Stands(_snapshot(worker.state)))


def share_threads(workers: int) -> None:
    """Leave the other workers of this machine their part of its cores."""
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def _snapshot(state: State) -> State:
    """Copy the figures and take the notes."""
    notes: deque[str] = deque()
    while state.notes:
        notes.append(state.notes.popleft())
    return replace(state, notes=notes)
