"""What a worker in another process says of itself: with a model made up, in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from records import item, ok
from waiting import until
from workers import RUN, job

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.server import State
from mvw_cli.batch.workers import worker as module
from mvw_cli.batch.workers.worker import QUEUED, Message, RemoteWorker
from mvw_cli.errors import ModelProblem


class Stub(ExitStack):
    """Answers each item at once, unless its question names an error."""

    revision = "c0ffee"

    def __init__(self, job: object) -> None:
        super().__init__()
        self.state = State()

    def records(
        self, items: Iterator[Item], *, run: str, draining: Callable[[], bool]
    ) -> Iterator[dict[str, Any]]:
        for one in items:
            if one.question == "device":
                raise torch.AcceleratorError("CUDA error: an illegal address\nmore of it")
            if one.question == "model":
                raise ModelProblem("not exactly", cause="a test", hint="mvw doctor")
            self.state.slots += 1
            self.state.notes.append(one.id)
            yield ok(one.id, run=run)
        self.state.notes.append(f"draining: {draining()}")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> tuple[RemoteWorker, list[Message], threading.Thread]:
    monkeypatch.setattr(module, "Worker", Stub)
    sent: list[Message] = []
    worker = RemoteWorker(job(), sent.append)
    thread = threading.Thread(target=worker.work, daemon=True)
    thread.start()
    worker.deliver(Message("begin", RUN))
    return worker, sent, thread


def test_it_asks_for_items_and_tells_each_answer_and_how_it_ended(said: Any) -> None:
    worker, sent, thread = said
    for name in "ab":
        worker.deliver(Message("item", item(name)))
    until(lambda: [kind for kind, _ in sent].count("done") == 2)
    worker.deliver(Message("drain"))
    thread.join(10)
    assert sent[0] == Message("loaded", "c0ffee") and sent[-1] == Message("ended")
    told = {kind: [value for of, value in sent if of == kind] for kind, _ in sent}
    assert [(record["id"], record["run"]) for record in told["done"]] == [("a", RUN), ("b", RUN)]
    assert sum(told["request"]) == QUEUED + 2
    assert [state.slots for state in told["status"]] == [1, 2, 2]
    assert [list(state.notes) for state in told["status"]] == [["a"], ["b"], ["draining: True"]]


@pytest.mark.parametrize("what", ["device", "model"])
def test_a_lost_device_is_a_death_and_all_else_is_an_error_that_tells_its_place(
    said: Any, what: str
) -> None:
    worker, sent, thread = said
    worker.deliver(Message("item", item("a", what)))
    until(lambda: not thread.is_alive())
    kind, value = sent[-1]
    if what == "device":
        assert (kind, value) == ("exited", "lost its device: CUDA error: an illegal address")
    else:
        assert kind == "broken" and isinstance(value, ModelProblem)
        assert "test_remote_worker.py" in value.__notes__[0]
