"""Workers served on demand, and what becomes of items whose workers die: with workers made up."""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from records import item, ok
from workers import RUN, served

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.server import State
from mvw_cli.batch.store.jsonl import DiskFull
from mvw_cli.batch.workers.dispatcher import MAX_FAILURES, Dispatcher
from mvw_cli.batch.workers.worker import Message
from mvw_cli.errors import MvwError, OutOfMemory, PluginProblem
from mvw_cli.machine.child_process import portable

ROOM = 4
ITEMS = [item(str(number)) for number in range(40)]


class Fake:
    """A fleet in which each call of `receive` lets every worker answer one item, or die."""

    def __init__(self, workers: int, dies: Callable[[int, list[str]], bool]) -> None:
        self.workers, self.dies = workers, dies
        self.messages: deque[tuple[int, Message]] = deque()
        self.held: dict[int, list[str]] = {}
        self.starts = [0] * workers
        self.done = [0] * workers
        self.most_held = 0
        self.resting: set[int] = set()
        self.closed = False
        self.ending: set[int] = set()
        self.loads: Callable[[int], Message] = lambda worker: Message("loaded", "c0ffee")

    def open(self) -> list[str]:
        return [f"worker {number}" for number in range(self.workers)]

    def start(self, worker: int) -> None:
        self.starts[worker] += 1
        self.messages.append((worker, self.loads(worker)))

    def send(self, worker: int, order: Message) -> None:
        match order:
            case Message("begin"):
                self.held[worker] = []
                self.messages.append((worker, Message("request", ROOM)))
            case Message("item", one):
                self.held[worker].append(one.id)
                self.most_held = max(self.most_held, len(self.held[worker]))
            case _:
                self.ending.add(worker)

    def receive(self, timeout_s: float) -> list[tuple[int, Message]]:
        for worker, held in list(self.held.items()):
            if self.dies(worker, held):
                del self.held[worker]
                self.messages.append((worker, Message("exited", "was killed by a test")))
            elif held and worker not in self.resting:
                self.done[worker] += 1
                answer = ok(held.pop(0), run=RUN)
                self.messages += [
                    (worker, Message("done", answer)),
                    (worker, Message("request", 1)),
                ]
            elif worker in self.ending:
                self.ending.discard(worker)
                del self.held[worker]
                self.messages.append((worker, Message("ended")))
        time.sleep(0.0005)  # the iterator of items is read in a thread
        found = list(self.messages)
        self.messages.clear()
        return found

    def stop(self, worker: int) -> None:
        self.held.pop(worker, None)

    def close(self) -> None:
        self.closed = True


def never(worker: int, held: list[str]) -> bool:
    return False


def serve(
    fleet: Fake, items: Iterator[Item] | None = None, draining: Callable[[], bool] = lambda: False
) -> tuple[dict[str, dict[str, Any]], Dispatcher]:
    """Serve items; return the records by id, each of which has come once."""
    found: dict[str, dict[str, Any]] = {}
    with Dispatcher(fleet) as dispatcher:
        for record in served(dispatcher, items or ITEMS, draining):
            assert record["id"] not in found
            found[record["id"]] = record
    assert fleet.closed
    return found, dispatcher


def test_every_item_is_answered_once_by_workers_that_share_the_work() -> None:
    fleet = Fake(3, never)
    found, dispatcher = serve(fleet)
    assert found.keys() == {one.id for one in ITEMS}
    assert dispatcher.revision == "c0ffee"
    assert min(fleet.done) > 8
    assert fleet.most_held <= ROOM


def test_no_more_items_are_fetched_than_there_is_room_for() -> None:
    fetched = 0

    def items() -> Iterator[Item]:
        nonlocal fetched
        for one in ITEMS * 25:
            fetched += 1
            yield item(f"{one.id}-{fetched}")

    fleet = Fake(2, never)
    with Dispatcher(fleet) as dispatcher:
        for done, _ in enumerate(served(dispatcher, items()), start=1):
            assert fetched - done < 2 * (ROOM + 1) + 20
    assert done == 1000


def test_a_worker_that_rests_does_not_keep_items_from_the_others() -> None:
    fleet = Fake(2, never)
    fleet.resting = {0}
    before: list[int] = []

    def draining() -> bool:
        if fleet.done[1] == len(ITEMS) - ROOM:
            before.append(fleet.done[0])
            fleet.resting = set()
        return False

    found, _ = serve(fleet, draining=draining)
    assert before[0] == 0
    assert len(found) == len(ITEMS)


def test_what_a_dead_worker_held_is_answered_by_others_and_it_is_started_again() -> None:
    died: list[list[str]] = []

    def dies(worker: int, held: list[str]) -> bool:
        if worker == 0 and fleet.done[0] > 3 and len(held) > 2 and not died:
            died.append(list(held))
            return True
        return False

    fleet = Fake(2, dies)
    found, dispatcher = serve(fleet)
    assert found.keys() == {one.id for one in ITEMS}
    assert all(record["status"] == "ok" for record in found.values())
    again = {id for id, record in found.items() if record["attempts"] == 2}
    assert again == set(died[0])
    assert fleet.starts == [2, 1]
    (note,) = dispatcher.state.notes
    assert note.startswith(f"worker 0: was killed by a test; {len(again)} items")


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_poisonous_item_fails_and_takes_no_other_with_it(workers: int) -> None:
    poison = {"0", "17", "39"}
    fleet = Fake(workers, lambda worker, held: bool(poison & set(held)))
    found, _ = serve(fleet)
    assert found.keys() == {one.id for one in ITEMS}
    failed = {id: record for id, record in found.items() if record["status"] == "failed"}
    assert failed.keys() == poison
    for record in failed.values():
        assert record["error"]["type"] == "WorkerDied"
        assert record["error"]["cause"] == "it was killed by a test"
        assert record["attempts"] >= 2
        assert record.keys() == ok("0").keys()


def test_workers_that_only_die_are_given_up_and_the_run_ends() -> None:
    fleet = Fake(2, lambda worker, held: bool(held))
    with pytest.raises(MvwError, match="without an answer in between") as caught:
        serve(fleet)
    assert caught.value.cause == "the last time it was killed by a test"
    assert max(fleet.starts) <= MAX_FAILURES + 1
    assert fleet.closed


def test_a_worker_that_only_dies_does_not_end_the_others() -> None:
    fleet = Fake(2, lambda worker, held: worker == 0 and bool(held))
    found, dispatcher = serve(fleet)
    assert found.keys() == {one.id for one in ITEMS}
    assert fleet.starts == [MAX_FAILURES + 1, 1]
    assert "given up" in dispatcher.state.notes[-1]


def test_an_error_of_loading_counts_only_when_all_have_one() -> None:
    fleet = Fake(2, never)
    full = OutOfMemory("The model does not fit.", cause="It is large.", hint="mvw doctor")
    fleet.loads = lambda worker: Message("loaded") if worker else Message("broken", full)
    found, dispatcher = serve(fleet)
    assert len(found) == len(ITEMS)
    assert list(dispatcher.state.notes) == [
        "worker 0: given up: The model does not fit. (It is large.)"
    ]
    fleet = Fake(2, never)
    fleet.loads = lambda worker: Message("broken", full)
    with pytest.raises(OutOfMemory) as caught:
        serve(fleet)
    assert caught.value is full
    assert fleet.closed and fleet.starts == [1, 1]


def test_workers_with_other_weights_than_the_first_are_not_used() -> None:
    fleet = Fake(2, never)
    fleet.loads = lambda worker: Message("loaded", f"commit-{worker}")
    found, dispatcher = serve(fleet)
    assert len(found) == len(ITEMS)
    assert dispatcher.revision == "commit-0"
    assert fleet.done[1] == 0
    assert "commit-1" in dispatcher.state.notes[0]


def test_an_error_while_serving_ends_the_run_as_it_would_in_one_process() -> None:
    fleet = Fake(2, never)
    with pytest.raises(OutOfMemory), Dispatcher(fleet) as dispatcher:
        for _ in served(dispatcher, ITEMS):
            fleet.messages.append((1, Message("broken", OutOfMemory("no"))))
    assert fleet.closed


def test_what_others_have_answered_by_then_is_kept() -> None:
    """Answers that are on their way when a worker meets what ends the run."""
    fleet, broken = Fake(2, never), PluginProblem("policy `x` returned 7", cause="", hint="")
    answers = [(1, Message("done", ok(str(number), run=RUN))) for number in (1, 3)]
    said = iter(
        [
            [(0, Message("loaded", "c0ffee")), (1, Message("loaded", "c0ffee"))],
            [(0, Message("request", 2)), (1, Message("request", 2))],
            [(0, Message("broken", broken)), answers[0]],
            [(0, Message("exited", "was killed by SIGKILL")), answers[1]],
        ]
    )

    def receive(timeout_s: float) -> list[tuple[int, Message]]:
        time.sleep(0.05)  # by then all four are fetched, and two are given to each
        return next(said, [])

    fleet.receive = receive  # type: ignore[method-assign]
    found = []
    with Dispatcher(fleet) as dispatcher, pytest.raises(PluginProblem) as caught:
        for record in served(dispatcher, ITEMS[:4]):
            found.append(record["id"])
    assert caught.value is broken
    assert found == ["1", "3"]
    assert fleet.starts == [1, 1] and not dispatcher.state.notes


def test_draining_finishes_what_was_given_and_gives_no_more() -> None:
    fleet = Fake(2, never)
    found, _ = serve(fleet, draining=lambda: sum(fleet.done) >= 10)
    assert 10 <= len(found) <= 10 + 2 * ROOM
    assert fleet.ending == set()


def test_what_the_items_raise_is_raised_once_all_from_before_are_answered() -> None:
    def items() -> Iterator[Item]:
        yield from ITEMS[:7]
        raise OutOfMemory("of the list")

    fleet = Fake(2, never)
    found = []
    with pytest.raises(OutOfMemory, match="of the list"), Dispatcher(fleet) as dispatcher:
        for record in served(dispatcher, items()):
            found.append(record["id"])
    assert sorted(found) == [one.id for one in ITEMS[:7]]


def test_the_state_is_the_sum_of_those_that_live() -> None:
    def dies(worker: int, held: list[str]) -> bool:
        return worker == 0 and fleet.starts[0] == 1 and fleet.done[0] > 8

    fleet = Fake(2, dies)
    with Dispatcher(fleet) as dispatcher:
        records, now = served(dispatcher, ITEMS), dispatcher.state
        next(records)
        for number, state in enumerate((State(3, 8, 40), State(2, 8, 20))):
            state.notes.append(f"{state.slots} slots")
            fleet.messages.append((number, Message("status", state)))
        next(records), next(records), next(records)
        assert (now.slots, now.max_slots, now.kv_allocated_bytes_peak) == (5, 16, 60)
        assert list(now.notes) == ["worker 0: 3 slots", "worker 1: 2 slots"]
        list(records)
    assert fleet.starts[0] == 2
    assert (now.slots, now.max_slots, now.kv_allocated_bytes_peak) == (0, 0, 60)


class Own(OutOfMemory):
    """That pickle can't send."""

    def __reduce__(self) -> str:
        raise pickle.PicklingError


@pytest.mark.parametrize("kind", [OutOfMemory, DiskFull, Own, ValueError])
def test_an_error_stays_what_it_is_on_its_way(kind: type[Exception]) -> None:
    told = {} if kind is ValueError else {"cause": "It is large.", "hint": "mvw doctor"}
    error = kind("It does not fit.", **told)
    try:
        raise error
    except Exception:
        again = pickle.loads(pickle.dumps(Message("broken", portable(error)))).value
    assert str(again) == "It does not fit."
    if isinstance(error, MvwError):
        assert again.exit_code == error.exit_code
        assert {"cause": again.cause, "hint": again.hint} == told
    if kind is Own:  # what a user is told remains
        assert type(again) is MvwError
    else:
        assert type(again) is kind and "test_dispatcher.py" in again.__notes__[0]
