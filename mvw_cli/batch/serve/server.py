"""Items in, records out: continuous batching over the engine's slots.

One prefill at most goes between two decode steps, so that neither waits long for the other: the
sequences that decode wait for one image, and an image waits for one token. Who is admitted is
decided by bytes. What fails is one record; what lacks memory is tried again with less.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import nan
from typing import TYPE_CHECKING, Any, Protocol

from mvw_cli.batch.serve.capacity import Limits
from mvw_cli.batch.serve.prefetch import Encoder, Ready, Unreadable
from mvw_cli.batch.store.record import failure, success
from mvw_cli.engine.memory import lost_device, ran_out, relieve
from mvw_cli.engine.types import Event, Failed, Finished, NotExact, Request, summarise
from mvw_cli.errors import ModelProblem, OutOfMemory, PluginProblem, UsageProblem
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.session import Session
from mvw_cli.text import readable_bytes

if TYPE_CHECKING:
    from mvw_cli.session import Slots

Record = dict[str, Any]


class Feed(Protocol):
    """Where items come from: `Prefetcher` for a batch, the desk of `mvw serve`."""

    @property
    def exhausted(self) -> bool: ...
    def take(self, wait: bool) -> Ready | Unreadable | None: ...


LOOKAHEAD = 64
"""Steps that an admitted request must have room for next to those that decode already: a lower
number admits more, and preempts more of them when the cache has grown."""
RECOVERY = 16
"""Requests that have to end without a lack of memory before one more slot is tried again."""


@dataclass(slots=True)
class State:
    """How a batch stands, for whoever shows it; written between steps."""

    slots: int = 0
    """Requests that decode."""
    max_slots: int = 0
    """Requests that may decode at the same time, as far as is known by now."""
    kv_allocated_bytes_peak: int = 0
    notes: deque[str] = field(default_factory=deque)
    """What should be told, once each; whoever tells it takes it out."""


@dataclass(slots=True)
class _Job:
    """One item on its way through the engine."""

    ready: Ready
    scaled: list[str] = field(default_factory=list)
    """Remarks on how it was scaled down."""
    attempts: int = 0
    isolated: bool = False
    """Whether it has to be served alone: a neighbour or it has raised in a step of all, or it
    needs what memory there is."""
    events: list[Event] = field(default_factory=list)


class Server:
    """Serves the items of a feed.

    Args:
        choose_limits: chooses what may be in use at the same time, from the first item that could
            be read; called once.
        run: short hash of the fingerprint, for the records.
        draining: asked between steps; once true, nothing more is admitted.
        cancelled: asked between steps for items that have been taken and are to be given up; they
            have no record.
        seen: told each event of the engine. An item that was preempted begins again.
        own_policies: whether each item has a policy of its own: one that can't be had, which else
            is the run's end, is then that item's failure.
    """

    def __init__(
        self,
        session: Session,
        feed: Feed,
        encoder: Encoder,
        choose_limits: Callable[[Ready], Limits],
        *,
        run: str,
        draining: Callable[[], bool] = lambda: False,
        cancelled: Callable[[], Iterable[str]] = tuple,
        seen: Callable[[Event], object] = lambda event: None,
        own_policies: bool = False,
    ) -> None:
        self._session, self._feed, self._encoder = session, feed, encoder
        self._choose_limits = choose_limits
        self._limits: Limits | None = None
        self._run, self._draining = run, draining
        self._cancelled, self._seen, self._own_policies = cancelled, seen, own_policies
        self._withdraws = own_policies or not isinstance(session.policy, NoWithdrawal)
        self._max_slots = 1
        self._recovered = 0
        """Requests that have ended since memory ran out."""
        self._jobs: dict[str, _Job] = {}
        self._waiting: deque[_Job] = deque()
        """Jobs to be admitted before any other."""
        self.state = State()

    def records(self) -> Iterator[Record]:
        """Yield one record for each item, as they end.

        Ends when the feed does, or when draining and no slot is in use any more.

        Raises:
            ModelProblem: the model turned out not to be servable exactly.
        """
        state = self.state
        with self._session.engine.serving() as slots:
            while True:
                self._give_up(slots)
                if not self._draining():
                    yield from self._admit(slots)
                if slots.active:
                    yield from self._step(slots)
                elif self._draining() or (self._feed.exhausted and not self._waiting):
                    return
                state.slots, state.max_slots = len(slots.active), self._max_slots
                state.kv_allocated_bytes_peak = max(
                    state.kv_allocated_bytes_peak, slots.kv_allocated_bytes
                )

    # -- admission --------------------------------------------------------------------------

    def _admit(self, slots: Slots) -> Iterator[Record]:
        """Prefill one item, if one is ready and there is room."""
        if len(slots.active) >= self._max_slots or any(job.isolated for job in self._jobs.values()):
            return
        if self._waiting:
            job = self._waiting.popleft()
        else:
            taken = self._feed.take(wait=not slots.active)
            if taken is None:
                return
            if isinstance(taken, Ready):
                job = _Job(taken)
                if self._limits is None:
                    self._limits = self._choose_limits(taken)
                    self._max_slots = self._limits.slots
                    if self._limits.reason:
                        self.state.notes.append(self._limits.reason)
            elif lost_device(taken.error):
                raise taken.error
            elif _lacks_memory(taken.error):
                ready = Ready(taken.item, taken.images, None, read_ms=nan, preprocess_ms=nan)
                job = _Job(ready, isolated=True)
            else:
                yield self._failed(taken, taken.error, attempts=1)
                return
        request = job.ready.encoded.request if job.ready.encoded else None
        if slots.active and (job.isolated or not self._fits(slots, request, LOOKAHEAD)):
            self._waiting.appendleft(job)
            return
        job.attempts += 1
        yield from self._prefill(slots, job)

    def _give_up(self, slots: Slots) -> None:
        for name in self._cancelled():
            if name in slots.active:
                slots.drop(name)
            self._jobs.pop(name, None)
            kept = (job for job in self._waiting if job.ready.item.id != name)
            self._waiting = deque(kept)

    def _fits(self, slots: Slots, request: Request | None, ahead: int) -> bool:
        """Whether the cache's storages keep to their budget, a request and so many steps later."""
        budget = None if self._limits is None else self._limits.kv_bytes
        if budget is None:
            return True
        together = request is not None or len(slots.active) > 1
        withdrawing = self._withdraws and together
        return slots.room_bytes(request, ahead=ahead, withdrawing=withdrawing) <= budget

    def _prefill(self, slots: Slots, job: _Job) -> Iterator[Record]:
        def admit() -> list[Event]:
            ready = job.ready
            if ready.encoded is None:
                job.ready = ready = replace(ready, encoded=self._encoder(ready.item, ready.images))
            assert ready.encoded is not None
            return slots.admit(ready.encoded.request)

        try:
            events = self._with_memory(admit)
        except Exception as error:
            # A policy that asks for a layer which the model lacks, or for gates of another
            # model, or that is at fault, would fail with every item: it is the run that can't be.
            of_all = job.ready.encoded is not None and not self._own_policies
            wrong = of_all and isinstance(error, UsageProblem | ModelProblem | PluginProblem)
            if wrong or isinstance(error, NotExact) or lost_device(error):
                raise
            yield from self._retry_or_fail(slots, job, error)
            return
        job.events = []
        self._jobs[job.ready.item.id] = job
        yield from self._process(slots, events)

    def _retry_or_fail(self, slots: Slots, job: _Job, error: Exception) -> Iterator[Record]:
        if _lacks_memory(error):
            yield from self._without_memory(slots, job, error)
        else:
            yield self._failed(job.ready, error, attempts=job.attempts)

    def _with_memory(self, action: Callable[[], list[Event]]) -> list[Event]:
        """Do something, and once more after memory was given back if it lacked any."""
        try:
            return action()
        except Exception as error:
            if not _lacks_memory(error):
                raise
        # Not where the error is handled: its traceback holds on to the tensors of what failed.
        relieve(self._session.engine.device)
        return action()

    # -- decoding ---------------------------------------------------------------------------

    def _step(self, slots: Slots) -> Iterator[Record]:
        while len(slots.active) > 1 and not self._fits(slots, None, 1):
            self._waiting.appendleft(self._preempt(slots))
        if self._limits is not None and self._limits.strict and not self._fits(slots, None, 1):
            allowed = readable_bytes(self._limits.kv_bytes or 0)
            cause = f"its KV cache outgrows the {allowed} that --kv-memory allows"
            yield from self._without_memory(
                slots, self._preempt(slots), OutOfMemory("", cause=cause)
            )
            return
        # Never without a step: what was preempted may be admitted again at once.
        try:
            events = self._with_memory(slots.step)
        except Exception as error:
            if isinstance(error, NotExact) or lost_device(error):
                raise
            if ran_out(error):
                yield from self._without_memory(slots, self._preempt(slots), error)
            else:
                yield from self._isolate(slots, error)
            return
        yield from self._process(slots, events)

    def _process(self, slots: Slots, events: list[Event]) -> Iterator[Record]:
        """Act on what a prefill or a step brought; what ends the run comes after its answers."""
        ending: Exception | None = None
        for event in events:
            job = self._jobs[event.request]
            job.events.append(event)
            self._seen(event)
            if isinstance(event, Failed | Finished):
                del self._jobs[event.request]
            if isinstance(event, Failed):
                faulty = isinstance(event.error, PluginProblem) and not self._own_policies
                if lost_device(event.error) or faulty:
                    ending = ending or event.error
                else:
                    yield from self._retry_or_fail(slots, job, event.error)
            elif isinstance(event, Finished):
                self._recovered += 1
                reduced = self._limits is not None and self._max_slots < self._limits.slots
                if reduced and self._recovered >= RECOVERY:
                    self._recovered = 0
                    self._max_slots += 1
                yield self._answered(job, event)
        if ending is not None:
            raise ending

    # -- when memory runs out, or a step of all raises ---------------------------------------

    def _preempt(self, slots: Slots) -> _Job:
        """Take out the request that was admitted last; the first always gets on."""
        name = slots.active[-1]
        slots.drop(name)
        return self._jobs.pop(name)

    def _without_memory(self, slots: Slots, job: _Job, error: Exception) -> Iterator[Record]:
        """Try an item with fewer neighbours, then smaller; then it has failed."""
        if slots.active:
            self._recovered = 0
            if len(slots.active) < self._max_slots:
                self._max_slots = len(slots.active)
                note = f"Memory ran out: from here on {self._max_slots} at a time."
                self.state.notes.append(note)
        else:
            smaller = self._encoder.scaled_down(job.ready)
            if smaller is None:
                yield self._failed(job.ready, error, attempts=job.attempts)
                return
            job.ready, remark = smaller
            job.scaled.append(remark)
            self.state.notes.append(f"{job.ready.item.id}: {remark}")
        self._waiting.appendleft(job)

    def _isolate(self, slots: Slots, error: Exception) -> Iterator[Record]:
        """Find out whose fault an error of a common step is: serve each of them alone."""
        jobs = [self._jobs.pop(name) for name in slots.active]
        for job in jobs:
            slots.drop(job.ready.item.id)
            job.isolated = True
        if len(jobs) == 1:
            yield self._failed(jobs[0].ready, error, attempts=jobs[0].attempts)
        else:
            self._waiting.extendleft(reversed(jobs))

    # -- records ----------------------------------------------------------------------------

    def _answered(self, job: _Job, finished: Finished) -> Record:
        ready, completion = job.ready, summarise(job.events)
        try:
            answer = self._session.parse(completion.text)
        except Exception as error:  # of adapters by others
            return self._failed(ready, error, attempts=job.attempts)
        before_ms = ready.read_ms + ready.preprocess_ms
        latency_ms = before_ms + (finished.at - job.events[0].at) * 1e3
        return success(
            ready.item,
            ready.images,
            completion,
            answer,
            run=self._run,
            timings={**_timings(ready), "latency_ms": latency_ms},
            remarks=[*(ready.encoded.remarks if ready.encoded else ()), *job.scaled],
            attempts=job.attempts,
        )

    def _failed(self, read: Ready | Unreadable, error: Exception, *, attempts: int) -> Record:
        if _lacks_memory(error):
            said = getattr(error, "cause", None) or str(error)
            error = OutOfMemory(
                "out of memory, with nothing else being decoded",
                cause=next(iter(said.splitlines()), "") or "the machine has no more to give",
                hint="mvw batch IMAGES QUESTION --set images.min_pixels=100000 --retry-failed",
            )
        return failure(
            read.item,
            read.images,
            error,
            run=self._run,
            attempts=attempts,
            timings=_timings(read) if isinstance(read, Ready) else {},
        )


def _timings(ready: Ready) -> dict[str, float]:
    return {"read_ms": ready.read_ms, "preprocess_ms": ready.preprocess_ms}


def _lacks_memory(error: BaseException) -> bool:
    """Whether less of anything could help."""
    return isinstance(error, OutOfMemory) or ran_out(error)
