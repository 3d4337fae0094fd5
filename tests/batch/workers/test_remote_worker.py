"""What a worker in another process says of itself: with a model made up, in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from records import item, ok
from waiting import until
from workers import RUN, job

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.server import State
from mvw_cli.batch.workers import worker as module
from mvw_cli.batch.workers.worker import (
    QUEUED,
    Assign,
    Begin,
    Broken,
    Done,
    End,
    Ended,
    Exited,
    Loaded,
    RemoteWorker,
    Report,
    RequestItems,
    Status,
)
from mvw_cli.errors import ModelProblem


class Stub:
    """Answers each item at once, unless its question names an error."""

    revision = "c0ffee"

    def __init__(self, job: object) -> None:
        self.state = State()

    def __enter__(self) -> Stub:
        return self

    def records(
        self, items: Iterator[Item], *, run: str, draining: Callable[[], bool]
    ) -> Iterator[dict[str, Any]]:
        self.state = State()
        for one in items:
            if one.question == "device":
                raise torch.AcceleratorError("CUDA error: an illegal address\nmore of it")
            if one.question == "model":
                raise ModelProblem("not exactly", cause="a test", hint="mvw doctor")
            self.state.generated_tokens += 3
            self.state.notes.append(one.id)
            yield ok(one.id, run=run)
            if draining():
                return


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> tuple[RemoteWorker, list[Report], threading.Thread]:
    monkeypatch.setattr(module, "Worker", Stub)
    reports: list[Report] = []
    worker = RemoteWorker(job(), reports.append, every_s=30.0)
    thread = threading.Thread(target=worker.work, daemon=True)
    thread.start()
    return worker, reports, thread


def wait_for(reports: list[Report], kind: type, count: int = 1) -> list[Any]:
    def found() -> list[Report]:
        return [report for report in reports if isinstance(report, kind)]

    until(lambda: len(found()) >= count)
    return found()


def test_it_asks_for_items_and_tells_each_answer_and_how_it_ended(said: Any) -> None:
    worker, reports, thread = said
    for run in (RUN, "f" * 16):  # it can be told to begin again
        before = len(reports)
        worker.deliver(Begin(run))
        worker.deliver(Assign(item("a")))
        worker.deliver(Assign(item("b")))
        worker.deliver(End())
        wait_for(reports, Ended, 1 if run == RUN else 2)
        new = [report for report in reports[before:] if not isinstance(report, Loaded)]
        assert [r.record["id"] for r in new if isinstance(r, Done)] == ["a", "b"]
        assert {r.record["run"] for r in new if isinstance(r, Done)} == {run}
        assert sum(r.room for r in new if isinstance(r, RequestItems)) == QUEUED + 2
        (status,) = (r for r in new if isinstance(r, Status))
        assert status.state.generated_tokens == 6
        assert list(status.state.notes) == ["a", "b"]
        assert isinstance(new[-1], Ended)
    assert reports[0] == Loaded("c0ffee")
    assert thread.is_alive()


@pytest.mark.parametrize("what", ["device", "model"])
def test_a_lost_device_is_a_death_and_all_else_is_an_error_that_tells_its_place(
    said: Any, what: str
) -> None:
    worker, reports, thread = said
    worker.deliver(Begin(RUN))
    worker.deliver(Assign(item("a", what)))
    (told,) = wait_for(reports, Exited if what == "device" else Broken)
    if what == "device":
        assert told == Exited("lost its device: CUDA error: an illegal address")
    else:
        assert isinstance(told.error, ModelProblem) and not told.loading
        assert "test_remote_worker.py" in told.error.__notes__[0]
    thread.join(10)
    assert not thread.is_alive()
