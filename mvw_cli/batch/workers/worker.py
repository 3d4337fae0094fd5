"""A model that serves items: what one process does, wherever it runs.

`Worker` serves in this process; `dispatcher.py` has the same methods, for workers in others.
`RemoteWorker` is a worker at the other end of a pipe or of Ray: it acts on a dispatcher's orders.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, NamedTuple, Self

import torch

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.capacity import Limits, choose_limits, slot_bytes
from mvw_cli.batch.serve.prefetch import Encoder, Prefetcher, Ready
from mvw_cli.batch.serve.server import Record, Server, State
from mvw_cli.cost.shape import shape_of
from mvw_cli.engine.memory import lost_device
from mvw_cli.machine.child_process import portable
from mvw_cli.machine.facts import free_memory
from mvw_cli.profiles.schema import Profile
from mvw_cli.session import Session, open_session

# What the dispatcher and its workers send each other, whole and in order, by pipe or by Ray.


class Begin(NamedTuple):
    """Serve the items that follow."""

    run: str
    """Short hash of the fingerprint, for the records."""


class Assign(NamedTuple):
    """One item, to a worker that has requested one."""

    item: Item


class End(NamedTuple):
    """There are no more items."""


class Drain(NamedTuple):
    """Finish what decodes, begin nothing more."""


Order = Begin | Assign | End | Drain
"""To a worker."""


class Loaded(NamedTuple):
    """The model is loaded."""

    revision: str | None


class RequestItems(NamedTuple):
    """There is room for so many more items."""

    room: int


class Done(NamedTuple):
    """What came of one item."""

    record: dict[str, Any]


class Status(NamedTuple):
    """How things stand since `Begin`; notes are only in one of these."""

    state: State


class Ended(NamedTuple):
    """After `End` or `Drain`: nothing is held any more."""


class Broken(NamedTuple):
    """An error that another try would meet again; the worker does nothing more."""

    error: Exception
    loading: bool


class Exited(NamedTuple):
    """The worker is no more, or of no more use; what it held has to be done by another."""

    reason: str


Report = Loaded | RequestItems | Done | Status | Ended | Broken | Exited
"""From a worker, or from the launcher that notices its death."""


_AHEAD = 8
"""Items that are read ahead at least; as many as there are slots, where these are more."""
_AHEAD_BYTES = 512 * 2**20
"""Bytes of decoded images that are held ahead at most."""
QUEUED = 2
"""Items that lie ready for a remote worker's readers, so that none waits for a round trip."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that a process needs to know to serve items; it can be sent to another one."""

    profile: Profile
    allow_pickle: bool = False
    random_weights: bool = False
    slots: int | None = None
    """Requests that decode at the same time; None: as memory allows."""
    kv_bytes: int | None = None
    """Bytes that the KV cache may take; None: as memory allows."""
    readers: int = 2
    """Threads that read images ahead."""
    read_timeout_s: float = 60.0
    sharers: int = 1
    """Workers that have the free memory of the device in common; each takes its part."""

    def on(self, device: str) -> Job:
        """The same on another device."""
        return replace(self, profile=self.profile.model_copy(update={"device": device}))


class Worker:
    """A model in this process; a context manager, entering it loads the model.

    Raises:
        MvwError: on entering, as `open_session`.
    """

    session: Session

    def __init__(self, job: Job) -> None:
        self._job = job
        self._limits: Limits | None = None
        self.state = State()

    def __enter__(self) -> Self:
        job = self._job
        self.session = open_session(
            job.profile, allow_pickle=job.allow_pickle, random_weights=job.random_weights
        )
        return self

    def __exit__(self, *exception: object) -> None:
        del self.session

    @property
    def revision(self) -> str | None:
        """The commit of the weights that were loaded, where the hub told it."""
        return self.session.loaded.revision

    def records(
        self, items: Iterator[Item], *, run: str, draining: Callable[[], bool] = lambda: False
    ) -> Iterator[Record]:
        """Serve items; yield one record for each, as they end.

        Args:
            run: short hash of the fingerprint, for the records.
            draining: once it returns true, nothing more is begun; what decodes is finished.
        """
        job = self._job
        encoder = Encoder(self.session, job.profile.images.min_pixels)
        with Prefetcher(
            items,
            encode=encoder,
            threads=job.readers,
            ahead=max(_AHEAD, job.slots or 0),
            ahead_bytes=_AHEAD_BYTES,
            timeout_s=job.read_timeout_s,
            max_pixels=job.profile.images.max_pixels,
        ) as feed:
            server = Server(
                self.session, feed, encoder, self._choose_limits, run=run, draining=draining
            )
            self.state = server.state
            yield from server.records()

    def _choose_limits(self, first: Ready) -> Limits:
        """Choose by the memory that is free now, and by what the first item is like."""
        if self._limits is not None:
            return replace(self._limits, reason="")  # it has been told
        job, session = self._job, self.session
        model, request = session.loaded.model, first.value.request
        try:
            each = slot_bytes(
                shape_of(session.adapter, model.config),
                str(model.dtype).removeprefix("torch."),
                text_tokens=request.text_tokens,
                vision_tokens=request.layout.vision_tokens,
                new_tokens=request.settings.max_new_tokens,
                withdrawn_after=session.policy.withdrawal_step(),
            )
        except Exception:  # of adapters by others, which need not tell it
            each = None
        free = free_memory(str(model.device)) if job.kv_bytes is None else None
        self._limits = choose_limits(
            None if free is None else free // job.sharers,
            model.device.type,
            each,
            session.policy,
            slots=job.slots,
            kv_bytes=job.kv_bytes,
        )
        return self._limits


_Items = SimpleQueue[Item | None]


class RemoteWorker:
    """A worker that orders are delivered to from another thread.

    Args:
        send: takes a report to the dispatcher; called from several threads.
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
            case Assign(item):
                self._items.put(item)
            case Drain():
                self._draining.set()
                self._items.put(None)
            case _:
                self._items.put(None)

    def work(self) -> None:
        """Load the model and serve; returns when it is of no more use, which has been reported."""
        try:
            worker = Worker(self._job).__enter__()
        except Exception as error:
            self._send(Broken(portable(error), loading=True))
            return
        self._send(Loaded(worker.revision))
        while self._serve(worker, *self._begun.get()):
            pass

    def _serve(self, worker: Worker, run: str, items: _Items) -> bool:
        worker.state = State()
        self._send(RequestItems(QUEUED))
        try:
            with self._reporting(worker):
                for record in worker.records(
                    self._taken(items), run=run, draining=self._draining.is_set
                ):
                    self._send(Done(record))
        except Exception as error:
            if lost_device(error):
                line = next(iter(str(error).splitlines()), type(error).__name__)
                self._send(Exited(f"lost its device: {line}"))
            else:
                self._send(Broken(portable(error), loading=False))
            return False
        self._send(Ended())
        return True

    def _taken(self, items: _Items) -> Iterator[Item]:
        """Yield the items; for each that is taken, another one is requested."""
        while (item := items.get()) is not None:
            self._send(RequestItems(1))
            yield item

    @contextmanager
    def _reporting(self, worker: Worker) -> Iterator[None]:
        """Within it, and once at its end, report how things stand."""
        over = threading.Event()

        def report() -> None:
            while not over.wait(self._every_s):
                self._send(Status(_snapshot(worker.state)))

        thread = threading.Thread(target=report, name="mvw-status", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._send(Status(_snapshot(worker.state)))


def share_threads(workers: int) -> None:
    """Leave the other workers of this machine their part of its cores."""
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def _snapshot(state: State) -> State:
    """Copy the figures and take the notes."""
    notes: deque[str] = deque()
    while state.notes:
        notes.append(state.notes.popleft())
    return replace(state, notes=notes)
