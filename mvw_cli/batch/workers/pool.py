"""Workers in other processes, served with items by demand: what pipes and Ray have in common.

A worker says how many items it has room for, and gets no more: so the fast get more than the
slow, and no more is in memory than is being worked on. Records come back here, and this process
alone yields them. What is done about deaths is in `handout.py`, and how messages travel is the
matter of a `Fleet`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.server import Record, State
from mvw_cli.batch.store.record import failure
from mvw_cli.batch.workers.handout import Feeder, Handout
from mvw_cli.batch.workers.messages import (
    Begin,
    Broken,
    Died,
    Done,
    Drain,
    End,
    Ended,
    Give,
    Loaded,
    Order,
    Report,
    Stands,
    Wants,
)
from mvw_cli.errors import ModelProblem, MvwError

RESTARTS = 3
"""Times in a row that a worker may die without a record in between before it is given up."""
Status = Literal["absent", "loading", "idle", "serving", "lost"]
"""Absent: to be started, for the first time or after a death. Lost: given up."""
_PATIENCE_S = 0.1
_BRIEFLY_S = 0.01
_GAUGES = ("slots", "most_slots", "kv_bytes", "kv_allocated_bytes")
_COUNTERS = ("generated_tokens", "freed_bytes", "withdrawals", "restarts")


class WorkerDied(MvwError):
    """A worker's process ended by itself, or what it ran on was lost."""


class Fleet(Protocol):
    """Starts workers and carries messages. Workers are known by their numbers, from 0."""

    def start(self, worker: int) -> None:
        """Start a worker, or start it again after its death."""

    def send(self, worker: int, order: Order) -> None:
        """Send an order; to a worker that has died, it goes nowhere."""

    def receive(self, timeout_s: float) -> list[tuple[int, Report]]:
        """Return what has come, in order, deaths included; wait if there is nothing."""

    def stop(self, worker: int, *, for_good: bool = False) -> None:
        """End a worker at once, if it lives; nothing more comes from it, not even its death.

        Args:
            for_good: it will not be started again.
        """

    def close(self) -> None:
        """End all of them, and leave nothing behind."""


@dataclass(slots=True)
class _Hand:
    """What is known of one worker."""

    name: str
    status: Status = "absent"
    wants: int = 0
    fruitless: int = 0
    """Deaths since its last record."""
    state: State = field(default_factory=State)


class Pool:
    """An executor over a fleet.

    Args:
        names: of the workers, for the notes.
    """

    def __init__(self, fleet: Fleet, names: Sequence[str]) -> None:
        self._fleet = fleet
        self._hands = [_Hand(name) for name in names]
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
            MvwError: none could load; the first one's error.
        """
        try:
            for number in range(len(self._hands)):
                self._start(number)
            while self._revision is None:
                for number, report in self._fleet.receive(_PATIENCE_S):
                    self._take(number, report)
                self._start_absent()
        except BaseException:
            self._fleet.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._fleet.close()

    def records(
        self, items: Iterator[Item], *, run: str, draining: Callable[[], bool]
    ) -> Iterator[Record]:
        """Serve items; yield one record for each, as they end. Arguments as in `Executor`.

        Raises:
            MvwError: all workers have been given up, or the model can't be served.
        """
        try:
            with Feeder(items) as feed:
                yield from self._serve(Handout(feed), run, draining)
                if feed.fault is not None:
                    raise feed.fault
        finally:
            for number, hand in enumerate(self._hands):
                if hand.status == "serving":  # whoever took the records wants no more of them
                    self._fleet.stop(number)
                    self._rest(hand, "absent")

    def _serve(self, work: Handout, run: str, draining: Callable[[], bool]) -> Iterator[Record]:
        closing = False
        while True:
            if not closing and (draining() or work.finished):
                closing = True
                self._tell_all(End() if work.finished else Drain())
            if closing and not any(hand.status == "serving" for hand in self._hands):
                return
            if not closing:
                self._start_absent()
                self._begin_idle(run)
                self._hand_out(work)
            for number, report in self._fleet.receive(self._patience_s(work)):
                yield from self._take_in(work, number, report, run)

    # -- to the workers -----------------------------------------------------------------------

    def _start(self, number: int) -> None:
        self._hands[number].status = "loading"
        self._fleet.start(number)

    def _start_absent(self) -> None:
        for number, hand in enumerate(self._hands):
            if hand.status == "absent":
                self._start(number)

    def _begin_idle(self, run: str) -> None:
        for number, hand in enumerate(self._hands):
            if hand.status == "idle":
                hand.status, hand.wants = "serving", 0
                self._fleet.send(number, Begin(run))

    def _tell_all(self, order: Order) -> None:
        for number, hand in enumerate(self._hands):
            if hand.status == "serving":
                self._fleet.send(number, order)

    def _hand_out(self, work: Handout) -> None:
        """Give every worker what it wants, one at a time, so that a short rest is shared out."""
        wanting = [n for n, hand in enumerate(self._hands) if hand.wants]
        while wanting:
            wanting.sort(key=work.holds)
            for number in tuple(wanting):
                item = work.next_for(number)
                if item is None:
                    wanting.remove(number)
                    continue
                self._hands[number].wants -= 1
                self._fleet.send(number, Give(item))
                if not self._hands[number].wants:
                    wanting.remove(number)

    def _patience_s(self, work: Handout) -> float:
        starving = work.waits and any(hand.wants for hand in self._hands)
        return _BRIEFLY_S if starving else _PATIENCE_S

    # -- from the workers ---------------------------------------------------------------------

    def _take_in(self, work: Handout, number: int, report: Report, run: str) -> Iterator[Record]:
        """Act on a report that concerns items; leave the others to `_take`."""
        hand = self._hands[number]
        match report:
            case Wants(count):
                hand.wants += count
            case Done(record):
                deaths = work.done(number, record["id"])
                if deaths is not None:
                    hand.fruitless = 0
                    yield record | {"attempts": record["attempts"] + deaths}
            case Ended():
                self._rest(hand, "idle")
            case Died(reason):
                held, culprit = work.died(number)
                if culprit is not None:
                    item, deaths = culprit
                    hand.fruitless = -1  # now it is known why
                    yield failure(
                        item, [], _killed(deaths, reason), run=run, attempts=deaths, timings={}
                    )
                    held = 0
                self._bury(number, reason, held)
            case _:
                self._take(number, report)

    def _take(self, number: int, report: Report) -> None:
        hand = self._hands[number]
        match report:
            case Loaded(revision):
                if self._revision is not None and revision != self.revision:
                    self._give_up(number, _moved(revision, self.revision))
                    return
                self._revision = (revision,)
                hand.status = "idle"
            case Stands(state):
                while state.notes:
                    self._note(hand, state.notes.popleft())
                hand.state = state
                self._sum_up()
            case Broken(error, loading=True):
                self._give_up(number, error)
            case Broken(error):
                raise error
            case Died(reason):
                self._bury(number, reason, 0)

    def _bury(self, number: int, reason: str, held: int) -> None:
        hand = self._hands[number]
        self._fleet.stop(number)
        self._rest(hand, "absent")
        hand.fruitless += 1
        told = f"{reason}; {held} items that it held are begun again" if held else reason
        if hand.fruitless <= RESTARTS:
            self._note(hand, told)
            return
        self._give_up(
            number,
            WorkerDied(
                f"{hand.name} died {hand.fruitless} times without an answer in between",
                cause=f"the last time it {reason}",
                hint="mvw doctor",
            ),
        )

    def _give_up(self, number: int, error: Exception) -> None:
        """Go on without a worker; the last one's end is the end of all."""
        hand = self._hands[number]
        self._fleet.stop(number, for_good=True)
        self._rest(hand, "lost")
        self._error = self._error or error
        if all(other.status == "lost" for other in self._hands):
            raise self._error
        cause = getattr(error, "cause", None)
        self._note(hand, f"given up: {error}" + (f" ({cause})" if cause else ""))

    # -- how things stand ---------------------------------------------------------------------

    def _note(self, hand: _Hand, text: str) -> None:
        self.state.notes.append(f"{hand.name}: {text}")

    def _rest(self, hand: _Hand, status: Status) -> None:
        """Keep the counters of a worker that serves no more, and let go of the rest."""
        hand.status, hand.wants = status, 0
        for name in _COUNTERS:
            setattr(self._past, name, getattr(self._past, name) + getattr(hand.state, name))
        hand.state = State()
        self._sum_up()

    def _sum_up(self) -> None:
        states = [hand.state for hand in self._hands]
        for name in _GAUGES:
            setattr(self.state, name, sum(getattr(state, name) for state in states))
        for name in _COUNTERS:
            total = sum(getattr(state, name) for state in (self._past, *states))
            setattr(self.state, name, total)
        self.state.kv_allocated_bytes_peak = max(
            self.state.kv_allocated_bytes_peak,
            sum(state.kv_allocated_bytes_peak for state in states),
        )


def _killed(deaths: int, reason: str) -> MvwError:
    return WorkerDied(
        f"{deaths} workers that held this item died, the last while it held nothing else",
        cause=f"it {reason}",
        hint="mvw batch IMAGES QUESTION --retry-failed",
    )


def _moved(here: str | None, first: str | None) -> MvwError:
    return ModelProblem(
        "The weights on the hub changed while they were loaded",
        cause=f"one worker has {first}, another {here}",
        hint=f"mvw batch IMAGES QUESTION --set revision={here}",
    )
