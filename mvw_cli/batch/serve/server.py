"""Items in, records out: continuous batching over the engine's slots.

One prefill at most goes between two decode steps, so that neither waits long for the other: the
sequences that decode wait for one image, and an image waits for one token. Who is admitted is
decided by bytes. What fails is one record; what lacks memory is tried again with less.

It does not know where items come from, where records go, or who watches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import nan
from time import perf_counter
from typing import Any, Protocol

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.capacity import Limits
from mvw_cli.batch.serve.encode import Encoded, Encoder
from mvw_cli.batch.serve.prefetch import Ready, Unreadable
from mvw_cli.batch.store.record import failure, success
from mvw_cli.engine.completion import Completion, summarise
from mvw_cli.engine.exact import NotExact
from mvw_cli.engine.memory import lost_device, ran_out, relieve
from mvw_cli.engine.slots import Slots
from mvw_cli.engine.types import Event, Failed, Finished, Request, Token
from mvw_cli.errors import ModelProblem, OutOfMemory, UsageProblem
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.session import Session
from mvw_cli.text import readable_bytes

Record = dict[str, Any]

AHEAD = 64
"""Steps that an admitted request must have room for beside those that decode already: a lower
number admits more, and sends more of them back when the cache has grown."""
_OBSERVE_S = 0.1
RECOVERY = 16
"""Requests that have to end without a lack of memory before one more slot is tried again."""


class Feed(Protocol):
    """Where prepared items come from: `Prefetcher`, or whatever a test makes."""

    @property
    def exhausted(self) -> bool: ...

    def take(self, wait: bool) -> Ready | Unreadable | None: ...


@dataclass(slots=True)
class State:
    """How a batch stands, for whoever shows it; written between steps."""

    slots: int = 0
    """Requests that decode."""
    most_slots: int = 0
    """Requests that may decode at the same time, as far as is known by now."""
    kv_bytes: int = 0
    kv_allocated_bytes: int = 0
    kv_allocated_bytes_peak: int = 0
    generated_tokens: int = 0
    freed_bytes: int = 0
    """Bytes of cache entries that withdrawals have freed, all requests together."""
    withdrawals: int = 0
    restarts: int = 0
    """Requests that memory had no room for any more and that were begun again."""
    notes: deque[str] = field(default_factory=deque)
    """What should be told, once each; whoever tells it takes it out."""


@dataclass(slots=True)
class _Job:
    """One item on its way through the engine."""

    ready: Ready
    encoded: Encoded | None
    """None: memory did not suffice to encode it ahead, or it has been scaled down since."""
    scaled: list[str] = field(default_factory=list)
    """Remarks on how it was scaled down."""
    attempts: int = 0
    alone: bool = False
    """Whether it has to be served alone: a neighbour or it has raised in a step of all, or it
    needs what memory there is."""
    events: list[Event] = field(default_factory=list)

    @property
    def item(self) -> Item:
        return self.ready.item


class Server:
    """Serves the items of a feed.

    Args:
        choose_limits: says what may be in use at the same time, from the first item that could
            be read; asked once.
        run: short hash of the fingerprint, for the records.
        draining: asked between steps; once true, nothing more is admitted.
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
    ) -> None:
        self._session = session
        self._feed = feed
        self._encoder = encoder
        self._choose_limits = choose_limits
        self._limits: Limits | None = None
        self._run = run
        self._draining = draining
        self._withdraws = not isinstance(session.policy, NoWithdrawal)
        self._most = 1
        self._calm = 0
        self._observed = 0.0
        self._jobs: dict[str, _Job] = {}
        self._returned: deque[_Job] = deque()
        """Jobs to be admitted before any other."""
        self.state = State()

    def records(self) -> Iterator[Record]:
        """Yield one record for each item, as they end.

        Ends when the feed does, or when draining and no slot is in use any more.

        Raises:
            ModelProblem: the model turned out not to be servable exactly.
        """
        with self._session.engine.serving() as slots:
            while True:
                if not self._draining():
                    yield from self._admit(slots)
                if slots.active:
                    yield from self._step(slots)
                elif self._draining() or (self._feed.exhausted and not self._returned):
                    return
                self._observe(slots)

    # -- admission --------------------------------------------------------------------------

    def _admit(self, slots: Slots) -> Iterator[Record]:
        """Admit one item, if one is ready and there is room."""
        if len(slots.active) >= self._most or any(job.alone for job in self._jobs.values()):
            return
        if self._returned:
            job = self._returned.popleft()
        else:
            taken = self._feed.take(wait=not slots.active)
            if taken is None:
                return
            if isinstance(taken, Ready):
                job = _Job(taken, taken.value)
                if self._limits is None:
                    self._begin(taken)
            elif lost_device(taken.error):
                raise taken.error
            elif _lacks_memory(taken.error):
                ready = Ready(taken.item, taken.images, None, read_ms=nan, preprocess_ms=nan)
                job = _Job(ready, None, alone=True)
            else:
                yield self._failed(taken.item, taken, taken.error, attempts=1)
                return
        if slots.active and (job.alone or not self._has_room(slots, job)):
            self._returned.appendleft(job)
            return
        job.attempts += 1
        yield from self._prefill(slots, job)

    def _begin(self, first: Ready) -> None:
        self._limits = self._choose_limits(first)
        self._most = self._limits.slots
        if self._limits.reason:
            self.state.notes.append(self._limits.reason)

    @property
    def _budget(self) -> int | None:
        return None if self._limits is None else self._limits.kv_bytes

    def _has_room(self, slots: Slots, job: _Job) -> bool:
        """The admission rule: by bytes that the cache's storages would take."""
        if job.encoded is None:
            return True
        return self._fits(slots, job.encoded.request, ahead=AHEAD, withdrawing=self._withdraws)

    def _fits(self, slots: Slots, request: Request | None = None, **room: Any) -> bool:
        """Say whether the cache keeps to its budget, given back what nobody needs."""
        if self._budget is None or slots.room_bytes(request, **room) <= self._budget:
            return True
        slots.trim()
        return slots.room_bytes(request, **room) <= self._budget

    def _prefill(self, slots: Slots, job: _Job) -> Iterator[Record]:
        for retry in (True, False):
            if not retry:
                self._relieve()
            try:
                if job.encoded is None:
                    job.encoded = self._encoder(job.item, job.ready.images)
                events = slots.admit(job.encoded.request)
                break
            except Exception as error:
                # A policy that asks for a layer which the model lacks, or for gates of another
                # model, would fail with every item: it is the run that can't be.
                wrong = job.encoded is not None and isinstance(error, UsageProblem | ModelProblem)
                if wrong or isinstance(error, NotExact) or lost_device(error):
                    raise
                if _lacks_memory(error) and retry:
                    continue
                if _lacks_memory(error):
                    yield from self._without_memory(slots, job, error)
                else:
                    yield self._failed(job.item, job.ready, error, attempts=job.attempts)
                return
        job.events = []
        self._jobs[job.item.id] = job
        yield from self._take_in(slots, events)

    # -- decoding ---------------------------------------------------------------------------

    def _step(self, slots: Slots) -> Iterator[Record]:
        while self._over(slots):
            yield from self._send_back_youngest(slots, None)
        if not slots.active:
            return
        # Never without a step: what was sent back may be admitted again at once.
        for retry in (True, False):
            if not retry:
                self._relieve()
            try:
                events = slots.step()
                break
            except Exception as error:
                if isinstance(error, NotExact) or lost_device(error):
                    raise
                if ran_out(error) and retry:
                    continue
                if ran_out(error):
                    yield from self._send_back_youngest(slots, error)
                else:
                    yield from self._single_out(slots, error)
                return
        yield from self._take_in(slots, events)

    def _relieve(self) -> None:
        # Not where the error is handled: its traceback holds on to the tensors of what failed.
        relieve(self._session.loaded.model.device)

    def _over(self, slots: Slots) -> bool:
        together = len(slots.active) > 1
        if not together and not (slots.active and self._limits and self._limits.strict):
            return False
        return not self._fits(slots, withdrawing=self._withdraws and together)

    def _take_in(self, slots: Slots, events: list[Event]) -> Iterator[Record]:
        for event in events:
            job = self._jobs[event.request]
            if isinstance(event, Failed):
                del self._jobs[event.request]
                if lost_device(event.error):
                    raise event.error
                if ran_out(event.error):
                    yield from self._without_memory(slots, job, event.error)
                else:
                    yield self._failed(job.item, job.ready, event.error, attempts=job.attempts)
                continue
            job.events.append(event)
            if isinstance(event, Token):
                self.state.generated_tokens += 1
            elif isinstance(event, Finished):
                del self._jobs[event.request]
                self._recover()
                yield self._answered(job, event)

    # -- when memory runs out ---------------------------------------------------------------

    def _send_back_youngest(self, slots: Slots, error: Exception | None) -> Iterator[Record]:
        """Let the request that was admitted last begin again later; the first always gets on."""
        youngest = self._jobs.pop(slots.active[-1])
        alone = len(slots.active) == 1
        slots.drop(youngest.item.id)
        if alone:
            yield from self._without_memory(slots, youngest, error)
            return
        self.state.restarts += 1
        if error is not None:
            self._learn(len(slots.active))
        self._returned.appendleft(youngest)

    def _without_memory(self, slots: Slots, job: _Job, error: Exception | None) -> Iterator[Record]:
        """Try an item with fewer neighbours, then smaller; then it has failed."""
        if slots.active:
            self._learn(len(slots.active))
            self.state.restarts += 1
            self._returned.appendleft(job)
            return
        smaller = self._encoder.scaled_down(job.ready)
        if smaller is None:
            yield self._failed(job.item, job.ready, self._too_big(error), attempts=job.attempts)
            return
        job.ready, remark = smaller
        job.encoded = None
        job.scaled.append(remark)
        self.state.notes.append(f"{job.item.id}: {remark}")
        self._returned.appendleft(job)

    def _too_big(self, error: Exception | None) -> Exception:
        if error is None:
            budget = readable_bytes(self._budget or 0)
            cause = f"its KV cache outgrows the {budget} that --kv-memory allows"
        else:
            said = getattr(error, "cause", None) or str(error)
            cause = next(iter(said.splitlines()), "") or "the machine has no more to give"
        return OutOfMemory(
            "out of memory, with nothing else being decoded",
            cause=cause,
            hint="mvw batch IMAGES QUESTION --set images.min_pixels=100000 --retry-failed",
        )

    def _learn(self, slots: int) -> None:
        self._calm = 0
        if slots < self._most:
            self._most = max(1, slots)
            self.state.notes.append(f"Memory ran out: from here on {self._most} at a time.")

    def _recover(self) -> None:
        self._calm += 1
        if self._limits and self._most < self._limits.slots and self._calm >= RECOVERY:
            self._calm = 0
            self._most += 1

    def _single_out(self, slots: Slots, error: Exception) -> Iterator[Record]:
        """Find out whose fault an error of a common step is: serve each of them alone."""
        jobs = [self._jobs.pop(name) for name in slots.active]
        for job in jobs:
            slots.drop(job.item.id)
        if len(jobs) == 1:
            yield self._failed(jobs[0].item, jobs[0].ready, error, attempts=jobs[0].attempts)
            return
        self.state.restarts += len(jobs)
        for job in reversed(jobs):
            job.alone = True
            self._returned.appendleft(job)

    # -- records ----------------------------------------------------------------------------

    def _answered(self, job: _Job, finished: Finished) -> Record:
        completion = summarise(job.events)
        admitted = job.events[0].at
        try:
            answer = self._session.adapter.parse(completion.text)
        except Exception as error:  # of adapters by others
            return self._failed(job.item, job.ready, error, attempts=job.attempts)
        self._count(completion)
        outside = job.ready.read_ms + job.ready.preprocess_ms
        return success(
            job.item,
            job.ready.images,
            completion,
            answer,
            run=self._run,
            timings={
                "read_ms": job.ready.read_ms,
                "preprocess_ms": job.ready.preprocess_ms,
                "latency_ms": outside + (finished.at - admitted) * 1e3,
            },
            remarks=[*(job.encoded.remarks if job.encoded else ()), *job.scaled],
            attempts=job.attempts,
        )

    def _count(self, completion: Completion) -> None:
        withdrawal = completion.withdrawal
        if withdrawal is not None:
            self.state.withdrawals += 1
            self.state.freed_bytes += withdrawal.kv_bytes_before - withdrawal.kv_bytes_after

    def _failed(
        self, item: Item, read: Ready | Unreadable, error: Exception, *, attempts: int
    ) -> Record:
        if ran_out(error):
            error = self._too_big(error)
        timings = {}
        if isinstance(read, Ready):
            timings = {"read_ms": read.read_ms, "preprocess_ms": read.preprocess_ms}
        return failure(item, read.images, error, run=self._run, attempts=attempts, timings=timings)

    def _observe(self, slots: Slots) -> None:
        state, now = self.state, perf_counter()
        state.slots, state.most_slots = len(slots.active), self._most
        state.kv_allocated_bytes = slots.kv_allocated_bytes
        state.kv_allocated_bytes_peak = max(state.kv_allocated_bytes_peak, state.kv_allocated_bytes)
        if now - self._observed > _OBSERVE_S:
            self._observed = now
            state.kv_bytes = slots.kv_bytes


def _lacks_memory(error: BaseException) -> bool:
    """Whether less of anything could help."""
    return isinstance(error, OutOfMemory) or ran_out(error)
