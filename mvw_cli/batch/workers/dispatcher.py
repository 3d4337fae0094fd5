"""Items to workers in other processes, by demand, and their records back.

A worker requests as many items as it has room for: so the fast get more than the slow, and no more
is in memory than is being worked on. A worker that dies loses nothing: what it held goes back to
the queue, and is mixed with other items, for a death is rarely an item's fault. Items that were
held at two deaths are suspects; they are isolated at the end, each alone in its worker. One that is
alone at a second death has killed it, and is done with.

How messages travel is the launcher's matter: `local.py`, `ray.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.prefetch import Reader, Task
from mvw_cli.batch.serve.server import Record, State
from mvw_cli.batch.store.record import failure
from mvw_cli.batch.workers.worker import (
    Assign,
    Begin,
    Broken,
    Done,
    Drain,
    End,
    Ended,
    Exited,
    Loaded,
    Order,
    Report,
    RequestItems,
    Status,
)
from mvw_cli.errors import ModelProblem, MvwError

MAX_FAILURES = 3
"""Times in a row that a worker may die without a record in between before it is given up."""
SUSPECTED = 2
"""Deaths after which an item is isolated."""
_QUEUED = 16
"""Items that are fetched before a worker requests them."""
_POLL_S = 0.1
_POLL_STARVING_S = 0.01
_GAUGES = ("slots", "max_slots", "kv_allocated_bytes")
_COUNTERS = ("generated_tokens", "restarts")


class WorkerDied(MvwError):
    """A worker's process ended by itself, or what it ran on was lost."""


class Launcher(Protocol):
    """Starts workers and carries messages. Workers are known by their numbers, from 0."""

    def open(self) -> list[str]:
        """Get ready to start workers, and return their names; UsageProblem: there is no room."""

    def start(self, worker: int) -> None:
        """Start a worker, or start it again after its death."""

    def send(self, worker: int, order: Order) -> None:
        """Send an order; to a worker that has died, it goes nowhere."""

    def receive(self, timeout_s: float) -> list[tuple[int, Report]]:
        """Return what has come, in order, deaths included; wait if there is nothing."""

    def stop(self, worker: int, *, for_good: bool = False) -> None:
        """End a worker at once, if it lives; nothing more comes from it, not even its death."""

    def close(self) -> None:
        """End all of them, and leave nothing behind."""


@dataclass(slots=True)
class WorkerState:
    """What is known of one worker."""

    name: str
    phase: Literal["absent", "loading", "idle", "serving", "lost"] = "absent"
    """Absent: to be started, for the first time or after a death. Lost: given up."""
    requested: int = 0
    held: dict[str, Item] = field(default_factory=dict)
    failures: int = 0
    """Consecutive ones: deaths since its last record."""
    state: State = field(default_factory=State)


class Queue:
    """Items to be assigned: new ones, and those that dead workers held."""

    def __init__(self, feed: Reader[Item]) -> None:
        self._feed = feed
        self._requeued: deque[Item] = deque()
        self._suspects: deque[Item] = deque()
        self._deaths: dict[str, int] = {}
        self.fault: BaseException | None = None
        """What the iterator of new items raised, to be raised once the others are answered."""

    @property
    def empty(self) -> bool:
        return not (self._requeued or self._suspects) and self._exhausted

    @property
    def starving(self) -> bool:
        """Whether there will be items, but none is there yet."""
        return not (self._requeued or self._suspects or self._exhausted)

    def next_for(self, worker: WorkerState) -> Item | None:
        """Choose an item for a worker, which holds it from now on."""
        if any(self._deaths.get(id, 0) >= SUSPECTED for id in worker.held):
            return None
        item = self._requeued.popleft() if self._requeued else self._fetch()
        if item is None and self._suspects and not worker.held and self._exhausted:
            item = self._suspects.popleft()
        if item is not None:
            worker.held[item.id] = item
        return item

    def done(self, worker: WorkerState, id: str) -> int | None:
        """Strike an item out; return at how many deaths it was held, or None: it was not held."""
        if worker.held.pop(id, None) is None:
            return None
        return self._deaths.pop(id, 0)

    def take_back(self, worker: WorkerState) -> tuple[Item, int] | None:
        """Take back what a dead worker held.

        Returns:
            The item that has killed it, with the number of deaths; it is done with. None: what it
            held goes to others.
        """
        held = list(worker.held.values())
        worker.held.clear()
        for item in held:
            self._deaths[item.id] = self._deaths.get(item.id, 0) + 1
        if len(held) == 1 and self._deaths[held[0].id] >= SUSPECTED:
            return held[0], self._deaths.pop(held[0].id)
        for item in held:
            suspected = self._deaths[item.id] >= SUSPECTED
            (self._suspects if suspected else self._requeued).append(item)
        return None

    def _fetch(self) -> Item | None:
        if self.fault is None:
            try:
                return self._feed.take(wait=False)
            except BaseException as error:
                self.fault = error
        return None

    @property
    def _exhausted(self) -> bool:
        return self.fault is not None or self._feed.exhausted


class Dispatcher:
    """Serves items by workers that a launcher starts; a context manager."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._workers: list[WorkerState] = []
        self._revision: tuple[str | None] | None = None
        self._past = State()
        """Counters of what has ended."""
        self._error: Exception | None = None
        """Why the first worker that was given up was given up."""
        self.state = State()

    @property
    def revision(self) -> str | None:
        return self._revision[0] if self._revision else None

    def __enter__(self) -> Self:
        """Start all workers, and wait for the first that has loaded.

        Raises:
            MvwError: there is no room for them, or none could load; the first one's error.
        """
        try:
            self._workers = [WorkerState(name) for name in self._launcher.open()]
            while self._revision is None:
                self._start_absent()
                for number, report in self._launcher.receive(_POLL_S):
                    self._on_report(number, report)
        except BaseException:
            self._launcher.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._launcher.close()

    def records(
        self, items: Iterator[Item], *, run: str, draining: Callable[[], bool]
    ) -> Iterator[Record]:
        """Serve items; yield one record for each, as they end. Arguments as in `Worker`.

        Raises:
            MvwError: all workers have been given up, or the model can't be served.
        """
        try:
            # In a thread, since the iterator may read files to find out what is done already.
            with Reader(items, _fetched, threads=1, ahead=_QUEUED, name="mvw-feeder") as feed:
                queue = Queue(feed)
                yield from self._serve(queue, run, draining)
                if queue.fault is not None:
                    raise queue.fault
        finally:
            for number, worker in enumerate(self._workers):
                if worker.phase == "serving":  # whoever took the records wants no more of them
                    self._launcher.stop(number)
                    self._rest(worker, "absent")

    def _serve(self, queue: Queue, run: str, draining: Callable[[], bool]) -> Iterator[Record]:
        closing = False
        while True:
            finished = queue.empty and not any(worker.held for worker in self._workers)
            if not closing and (draining() or finished):
                closing = True
                self._send_all(End() if finished else Drain())
            if closing and not any(worker.phase == "serving" for worker in self._workers):
                return
            if not closing:
                self._start_absent()
                self._begin_idle(run)
                self._assign(queue)
            starving = queue.starving and any(worker.requested for worker in self._workers)
            for number, report in self._launcher.receive(_POLL_STARVING_S if starving else _POLL_S):
                yield from self._on_item_report(queue, number, report, run)

    # -- to the workers -----------------------------------------------------------------------

    def _start_absent(self) -> None:
        for number, worker in enumerate(self._workers):
            if worker.phase == "absent":
                worker.phase = "loading"
                self._launcher.start(number)

    def _begin_idle(self, run: str) -> None:
        for number, worker in enumerate(self._workers):
            if worker.phase == "idle":
                worker.phase, worker.requested = "serving", 0
                self._launcher.send(number, Begin(run))

    def _send_all(self, order: Order) -> None:
        for number, worker in enumerate(self._workers):
            if worker.phase == "serving":
                self._launcher.send(number, order)

    def _assign(self, queue: Queue) -> None:
        """Give every worker what it requests, one at a time, so that a short rest is shared out."""
        waiting = [number for number, worker in enumerate(self._workers) if worker.requested]
        while waiting:
            waiting.sort(key=lambda number: len(self._workers[number].held))
            for number in tuple(waiting):
                worker = self._workers[number]
                item = queue.next_for(worker)
                if item is None:
                    waiting.remove(number)
                    continue
                worker.requested -= 1
                self._launcher.send(number, Assign(item))
                if not worker.requested:
                    waiting.remove(number)

    # -- from the workers ---------------------------------------------------------------------

    def _on_item_report(
        self, queue: Queue, number: int, report: Report, run: str
    ) -> Iterator[Record]:
        """Act on a report that concerns items; leave the others to `_on_report`."""
        worker = self._workers[number]
        match report:
            case RequestItems(count):
                worker.requested += count
            case Done(record):
                deaths = queue.done(worker, record["id"])
                if deaths is not None:
                    worker.failures = 0
                    yield record | {"attempts": record["attempts"] + deaths}
            case Ended():
                self._rest(worker, "idle")
            case Exited(reason):
                requeued = len(worker.held)
                if culprit := queue.take_back(worker):
                    item, deaths = culprit
                    requeued, worker.failures = 0, -1  # now it is known why
                    error = WorkerDied(
                        f"{deaths} workers that held this item died, the last while it held "
                        "nothing else",
                        cause=f"it {reason}",
                        hint="mvw batch IMAGES QUESTION --retry-failed",
                    )
                    yield failure(item, [], error, run=run, attempts=deaths, timings={})
                self._on_exit(number, reason, requeued)
            case _:
                self._on_report(number, report)

    def _on_report(self, number: int, report: Report) -> None:
        worker = self._workers[number]
        match report:
            case Loaded(revision):
                if self._revision is not None and revision != self.revision:
                    moved = ModelProblem(
                        "The weights on the hub changed while they were loaded",
                        cause=f"one worker has {self.revision}, another {revision}",
                        hint=f"mvw batch IMAGES QUESTION --set revision={revision}",
                    )
                    return self._give_up(number, moved)
                self._revision = (revision,)
                worker.phase = "idle"
            case Status(state):
                while state.notes:
                    self._note(worker, state.notes.popleft())
                worker.state = state
                self._sum_up()
            case Broken(error, loading=True):
                self._give_up(number, error)
            case Broken(error):
                raise error
            case Exited(reason):
                self._on_exit(number, reason, 0)

    def _on_exit(self, number: int, reason: str, requeued: int) -> None:
        """Let a worker that has died be started again, unless it has failed too often."""
        worker = self._workers[number]
        self._launcher.stop(number)
        self._rest(worker, "absent")
        worker.failures += 1
        told = f"{reason}; {requeued} items that it held are begun again" if requeued else reason
        if worker.failures <= MAX_FAILURES:
            self._note(worker, told)
            return
        self._give_up(
            number,
            WorkerDied(
                f"{worker.name} died {worker.failures} times without an answer in between",
                cause=f"the last time it {reason}",
                hint="mvw doctor",
            ),
        )

    def _give_up(self, number: int, error: Exception) -> None:
        """Go on without a worker; the last one's end is the end of all."""
        worker = self._workers[number]
        self._launcher.stop(number, for_good=True)
        self._rest(worker, "lost")
        self._error = self._error or error
        if all(other.phase == "lost" for other in self._workers):
            raise self._error
        cause = getattr(error, "cause", None)
        self._note(worker, f"given up: {error}" + (f" ({cause})" if cause else ""))

    # -- how things stand ---------------------------------------------------------------------

    def _note(self, worker: WorkerState, text: str) -> None:
        self.state.notes.append(f"{worker.name}: {text}")

    def _rest(self, worker: WorkerState, phase: Literal["absent", "idle", "lost"]) -> None:
        """Keep the counters of a worker that serves no more, and let go of the rest."""
        worker.phase, worker.requested = phase, 0
        worker.held.clear()
        for name in _COUNTERS:
            setattr(self._past, name, getattr(self._past, name) + getattr(worker.state, name))
        worker.state = State()
        self._sum_up()

    def _sum_up(self) -> None:
        states = [worker.state for worker in self._workers]
        for name in _GAUGES:
            setattr(self.state, name, sum(getattr(state, name) for state in states))
        for name in _COUNTERS:
            total = sum(getattr(state, name) for state in (self._past, *states))
            setattr(self.state, name, total)
        self.state.kv_allocated_bytes_peak = max(
            self.state.kv_allocated_bytes_peak,
            sum(state.kv_allocated_bytes_peak for state in states),
        )


def _fetched(task: Task) -> tuple[Item, int]:
    assert task.item is not None
    return task.item, 0
