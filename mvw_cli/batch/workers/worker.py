"""A model that serves items: what one process does, wherever it runs.

`Worker` serves in this process; `dispatcher.py` has the same methods, for workers in others.
`RemoteWorker` is a worker at the other end of a pipe or of Ray: it acts on a dispatcher's orders.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple, Self

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.capacity import Limits, choose_limits, slot_bytes
from mvw_cli.batch.serve.prefetch import Encoder, Prefetcher, Ready
from mvw_cli.batch.serve.server import Record, Server, State
from mvw_cli.cost.shape import shape_of
from mvw_cli.engine.memory import lost_device
from mvw_cli.engine.types import EngineDied
from mvw_cli.machine.child_process import portable
from mvw_cli.machine.facts import free_memory
from mvw_cli.profiles.schema import Profile
from mvw_cli.profiles.withdrawal import withdrawal_policy
from mvw_cli.session import Session, open_session

_AHEAD = 8
"""Items that are read ahead at least; as many as there are slots, where these are more."""
_AHEAD_BYTES = 512 * 2**20
"""Bytes of decoded images that are held ahead at most."""
QUEUED = 2
"""Items that lie ready for a remote worker's readers, so that none waits for a round trip."""


Order = Literal["begin", "item", "drain"]
Report = Literal["loaded", "request", "status", "done", "ended", "broken", "exited"]


class Message(NamedTuple):
    """What the dispatcher and its workers send each other, whole and in order, by pipe or Ray.

    To a worker:
        begin: serve the items that follow; the value is `run`, for the records.
        item: one item, to a worker that has requested one.
        drain: finish what decodes, begin nothing more; there are no more items.

    From a worker:
        loaded: the model is; the value is the revision of its weights.
        request: there is room for so many more items.
        status: the `State` since the last one; each note is in one of these only.
        done: the record of one item.
        ended: after `drain`; nothing is held any more.
        broken: an error that another try would meet again; the worker does nothing more.
        exited: the worker is of no more use, and why; its launcher tells if it can't. What it held
            has to be done by another.
    """

    kind: Order | Report
    value: Any = None


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
        self.state = State()

    def __enter__(self) -> Self:
        job = self._job
        self.session = open_session(
            job.profile,
            slots=job.slots,
            kv_bytes=job.kv_bytes,
            sharers=job.sharers,
            allow_pickle=job.allow_pickle,
            random_weights=job.random_weights,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self.session.close()
        del self.session

    @property
    def revision(self) -> str | None:
        """The commit of the weights that were loaded, where the hub told it."""
        return self.session.loaded.revision

    def withdraw(self, profile: Profile) -> bool:
        """Serve under the withdrawal of another profile from now on, which differs in that alone.

        False: the engine has to be started anew for that.
        """
        if not self.session.engine.in_process:
            return False
        self.session = replace(self.session, policy=withdrawal_policy(profile))
        self._job = replace(self._job, profile=profile)
        return True

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
            max_decoded_pixels=job.profile.images.max_decoded_pixels,
        ) as feed:
            server = Server(
                self.session, feed, encoder, self._choose_limits, run=run, draining=draining
            )
            self.state = server.state
            if self.session.chosen:
                self.state.notes.append(self.session.chosen)
            yield from server.records()

    def _choose_limits(self, first: Ready) -> Limits:
        """Choose by the memory that is free now, and by what the first item is like."""
        job, session = self._job, self.session
        if session.engine.prepares_images:
            return Limits(session.engine.slots)  # vLLM's own pool decides who decodes
        assert first.encoded is not None
        model, request = session.loaded.model, first.encoded.request
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
        return choose_limits(
            None if free is None else free // job.sharers,
            model.device.type,
            each,
            session.policy,
            slots=job.slots,
            kv_bytes=job.kv_bytes,
        )


class RemoteWorker:
    """A worker that orders are delivered to from another thread.

    Args:
        send: takes a message to the dispatcher; called from several threads.
    """

    def __init__(self, job: Job, send: Callable[[Message], None]) -> None:
        self._job, self._send = job, send
        self._begun: SimpleQueue[str] = SimpleQueue()
        self._items: SimpleQueue[Item | None] = SimpleQueue()
        self._draining = threading.Event()

    def deliver(self, order: Message) -> None:
        """Take an order; returns at once."""
        match order:
            case Message("begin", run):
                self._begun.put(run)
            case Message("item", item):
                self._items.put(item)
            case _:
                self._draining.set()
                self._items.put(None)

    def work(self) -> None:
        """Load the model and serve; returns when there is no more to do, which has been sent."""
        try:
            with Worker(self._job) as worker:
                self._send(Message("loaded", worker.revision))
                run = self._begun.get()
                self._send(Message("request", QUEUED))
                for record in worker.records(
                    self._taken(), run=run, draining=self._draining.is_set
                ):
                    self._send_status(worker.state)
                    self._send(Message("done", record))
                self._send_status(worker.state)
                self._send(Message("ended"))
        except Exception as error:
            if isinstance(error, EngineDied):
                self._send(Message("exited", f"lost vLLM: {error.cause}"))
            elif lost_device(error):
                line = next(iter(str(error).splitlines()), type(error).__name__)
                self._send(Message("exited", f"lost its device: {line}"))
            else:
                self._send(Message("broken", portable(error)))

    def _taken(self) -> Iterator[Item]:
        """Yield the items; for each that is taken, another one is requested."""
        while (item := self._items.get()) is not None:
            self._send(Message("request", 1))
            yield item

    def _send_status(self, state: State) -> None:
        self._send(Message("status", replace(state, notes=deque(state.notes))))
        state.notes.clear()
