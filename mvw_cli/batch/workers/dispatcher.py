"""Items to workers in other processes, by demand, and their records back.

A worker requests as many items as it has room for: so the fast get more than the slow, and no more
is in memory than is being worked on. A worker that dies loses nothing: what it held goes back to
the queue, and is mixed with other items, for a death is rarely an item's fault. Items that were
held at two deaths are suspects; they are isolated at the end, each alone in its worker. One that is
alone at a second death has killed it, and is done with.

How messages travel is the launcher's matter: `local.py`, `ray.py`.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.server import Record, State
from mvw_cli.batch.store.record import failure
from mvw_cli.batch.workers.worker import Message
from mvw_cli.errors import ModelProblem, MvwError

MAX_FAILURES = 3
"""Times in a row that a worker may die without a record in between before it is given up."""
SUSPECTED = 2
"""Deaths after which an item is isolated."""
_FETCHED = 16
"""Items that are fetched before a worker requests them."""
_POLL_S = 0.05


class WorkerDied(MvwError):
    """A worker's process ended by itself, or what it ran on was lost."""


class Launcher(Protocol):
    """Starts workers and carries messages. Workers are known by their numbers, from 0."""

    def open(self) -> list[str]:
        """Get ready to start workers, and return their names; UsageProblem: there is no room."""

    def start(self, worker: int) -> None:
        """Start a worker, or start it again after its death."""

    def send(self, worker: int, order: Message) -> None:
        """Send an order; to a worker that has died, it goes nowhere."""

    def receive(self, timeout_s: float) -> list[tuple[int, Message]]:
        """Return what has come, in order, deaths included; wait if there is nothing."""

    def stop(self, worker: int) -> None:
        """End a worker at once, if it lives; nothing more comes from it, not even its death."""

    def close(self) -> None:
        """End all of them, and leave nothing behind."""


@dataclass(slots=True)
class WorkerState:
    """What is known of one worker."""

    name: str
    phase: Literal["absent", "loading", "idle", "serving", "ended", "lost"] = "absent"
    """Absent: to be started, for the first time or after a death. Lost: given up."""
    requested: int = 0
    held: dict[str, Item] = field(default_factory=dict)
    failures: int = 0
    """Consecutive ones: deaths since its last record."""
    state: State = field(default_factory=State)


class Queue:
    """Items to be assigned: new ones, and those that dead workers held.

    New ones are fetched in a thread, since their iterator may read files to find out what is done
    already.
    """

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._fetched: queue.Queue[Item] = queue.Queue(_FETCHED)
        self._stopped = False
        self._requeued: deque[Item] = deque()
        self._suspects: deque[Item] = deque()
        self._deaths: dict[str, int] = {}
        self.fault: BaseException | None = None
        """What the iterator of new items raised, to be raised once the others are answered."""
        self._thread = threading.Thread(target=self._fetch, name="mvw-feeder", daemon=True)
        self._thread.start()

    def _fetch(self) -> None:
        try:
            for item in self._items:
                self._fetched.put(item)
                if self._stopped:
                    return
        except BaseException as error:
            self.fault = error

    def close(self) -> None:
        """Fetch nothing more."""
        self._stopped = True
        while not self._fetched.empty():
            self._fetched.get_nowait()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to assign, now and later."""
        return not (self._requeued or self._suspects) and self._exhausted

    @property
    def _exhausted(self) -> bool:
        return not self._thread.is_alive() and self._fetched.empty()

    def next_for(self, worker: WorkerState) -> Item | None:
        """Choose an item for a worker, which holds it from now on."""
        if any(self._deaths.get(id, 0) >= SUSPECTED for id in worker.held):
            return None
        if self._requeued:
            item = self._requeued.popleft()
        elif not self._fetched.empty():
            item = self._fetched.get_nowait()
        elif self._suspects and not worker.held and self._exhausted:
            item = self._suspects.popleft()
        else:
            return None
        worker.held[item.id] = item
        return item

    def done(self, worker: WorkerState, id: str) -> int:
        """Strike an item out; return at how many deaths it was held."""
        del worker.held[id]
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


class Dispatcher:
    """Serves items by workers that a launcher starts; a context manager."""

    _queue: Queue

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._workers: list[WorkerState] = []
        self._run = ""
        self._revisions: list[str | None] = []
        """Of the weights that the workers have loaded."""
        self._error: Exception | None = None
        """Why the first worker that was given up was given up."""
        self.state = State()

    @property
    def revision(self) -> str | None:
        return self._revisions[0]

    def __enter__(self) -> Self:
        """Start all workers, and wait for the first that has loaded.

        Raises:
            MvwError: there is no room for them, or none could load; the first one's error.
        """
        try:
            self._workers = [WorkerState(name) for name in self._launcher.open()]
            while not self._revisions:
                self._start()
                for number, message in self._launcher.receive(_POLL_S):
                    self._on_message(number, message)
        except BaseException:
            self._launcher.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._launcher.close()

    def records(
        self, items: Iterator[Item], *, run: str, draining: Callable[[], bool]
    ) -> Iterator[Record]:
        """Serve items, once; yield one record for each, as they end. Arguments as in `Worker`.

        Raises:
            MvwError: all workers have been given up, or the model can't be served.
        """
        self._queue, self._run = Queue(items), run
        try:
            yield from self._serve(draining)
        finally:
            self._queue.close()
        if self._queue.fault is not None:
            raise self._queue.fault

    def _serve(self, draining: Callable[[], bool]) -> Iterator[Record]:
        closing = False
        while True:
            finished = self._queue.empty and not any(worker.held for worker in self._workers)
            if not closing and (finished or draining()):
                closing = True
                for number, worker in enumerate(self._workers):
                    if worker.phase == "serving":
                        self._launcher.send(number, Message("drain"))
            if closing and not any(worker.phase == "serving" for worker in self._workers):
                return
            if not closing:
                self._start()
                self._assign()
            yield from self._receive()

    def _receive(self) -> Iterator[Record]:
        """Yield the records that have come; what ends the run is raised after all of them."""
        ending: Exception | None = None
        messages = self._launcher.receive(_POLL_S)
        while messages:
            for number, message in messages:
                try:
                    record = self._on_message(number, message)
                except Exception as error:
                    ending, record = ending or error, None
                if record is not None:
                    yield record
            messages = self._launcher.receive(0) if ending is not None else []
        if ending is not None:
            raise ending

    # -- to the workers -----------------------------------------------------------------------

    def _start(self) -> None:
        """Start who is absent; let those that have loaded begin, once it is known for which run."""
        for number, worker in enumerate(self._workers):
            if worker.phase == "absent":
                worker.phase = "loading"
                self._launcher.start(number)
            elif worker.phase == "idle" and self._run:
                worker.phase = "serving"
                self._launcher.send(number, Message("begin", self._run))

    def _assign(self) -> None:
        """Give every worker what it requests, one at a time, so that a short rest is shared out."""
        given = True
        while given:
            given = False
            for number, worker in sorted(
                enumerate(self._workers), key=lambda one: len(one[1].held)
            ):
                if worker.requested and (item := self._queue.next_for(worker)) is not None:
                    worker.requested -= 1
                    self._launcher.send(number, Message("item", item))
                    given = True

    # -- from the workers ---------------------------------------------------------------------

    def _on_message(self, number: int, message: Message) -> Record | None:
        """Act on what a worker sends; return the record of an item that is done with."""
        worker = self._workers[number]
        match message:
            case Message("loaded", revision):
                self._revisions.append(revision)
                worker.phase = "idle"
                if revision != self.revision:
                    moved = ModelProblem(
                        "The weights on the hub changed while they were loaded",
                        cause=f"one worker has {self.revision}, another {revision}",
                        hint=f"mvw batch IMAGES QUESTION --set revision={revision}",
                    )
                    self._give_up(number, moved)
            case Message("request", count):
                worker.requested += count
            case Message("status", state):
                self._update(worker, state)
            case Message("done", record):
                worker.failures = 0
                deaths = self._queue.done(worker, record["id"])
                return {**record, "attempts": record["attempts"] + deaths}
            case Message("ended"):
                self._rest(worker, "ended")
            case Message("broken", error):
                if worker.phase != "loading":
                    worker.phase = "ended"
                    raise error
                self._give_up(number, error)
            case Message("exited", reason) if worker.phase != "ended":
                return self._on_exit(number, reason)
        return None

    def _on_exit(self, number: int, reason: str) -> Record | None:
        """Let a worker that has died be started again, unless it has failed too often."""
        worker, record = self._workers[number], None
        self._launcher.stop(number)
        worker.failures += 1
        told = reason
        if requeued := len(worker.held):
            told = f"{reason}; {requeued} items that it held are begun again"
            if culprit := self._queue.take_back(worker):
                item, deaths = culprit
                told, worker.failures = reason, 0  # now it is known why
                error = WorkerDied(
                    f"{deaths} workers that held this item died, the last while it held "
                    "nothing else",
                    cause=f"it {reason}",
                    hint="mvw batch IMAGES QUESTION --retry-failed",
                )
                record = failure(item, [], error, run=self._run, attempts=deaths, timings={})
        if worker.failures <= MAX_FAILURES:
            self._rest(worker, "absent")
            self._note(worker, told)
            return record
        message = f"{worker.name} died {worker.failures} times without an answer in between"
        cause = f"the last time it {reason}"
        self._give_up(number, WorkerDied(message, cause=cause, hint="mvw doctor"))
        return None

    def _give_up(self, number: int, error: Exception) -> None:
        """Go on without a worker; the last one's end is the end of all."""
        worker = self._workers[number]
        self._launcher.stop(number)
        self._rest(worker, "lost")
        self._error = self._error or error
        if all(other.phase == "lost" for other in self._workers):
            raise self._error
        cause = getattr(error, "cause", None)
        self._note(worker, f"given up: {error}" + (f" ({cause})" if cause else ""))

    # -- how things stand ---------------------------------------------------------------------

    def _note(self, worker: WorkerState, text: str) -> None:
        self.state.notes.append(f"{worker.name}: {text}")

    def _rest(self, worker: WorkerState, phase: Literal["absent", "ended", "lost"]) -> None:
        """Let go of what is known of a worker that serves no more."""
        worker.phase, worker.requested = phase, 0
        worker.held.clear()
        self._update(worker, State())

    def _update(self, worker: WorkerState, state: State) -> None:
        """Take in how a worker stands, and sum up all."""
        while state.notes:
            self._note(worker, state.notes.popleft())
        worker.state = state
        states, total = [one.state for one in self._workers], self.state
        total.slots = sum(state.slots for state in states)
        total.max_slots = sum(state.max_slots for state in states)
        peak = sum(state.kv_allocated_bytes_peak for state in states)
        total.kv_allocated_bytes_peak = max(total.kv_allocated_bytes_peak, peak)
