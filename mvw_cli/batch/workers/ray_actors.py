"""Actors that hold a model, and how messages travel between them and the driver.

They know nothing of what is said. Ray is given, and never imported here: the far end runs where
this module is, and needs none of its names.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from mvw_cli.batch.workers.messages import Died, Order, Report
from mvw_cli.batch.workers.worker import Job

_POLL_S = 1.0
"""How long a worker that has nothing to report keeps the one who asks waiting."""


class Actors:
    """A fleet of actors, of a Ray that this process is connected to.

    An actor says in one long call after the other what there is to report. A new process of the
    same actor has a new name for itself, so that no order meant for its predecessor reaches it.
    """

    def __init__(self, ray: Any, arguments: tuple[Any, ...], resources: dict[str, float]) -> None:
        self._ray, self._arguments = ray, arguments
        variables = {name: value for name, value in os.environ.items() if name.startswith("MVW_")}
        self._kind = ray.remote(
            max_restarts=-1,
            max_task_retries=0,
            concurrency_groups={"orders": 1, "reports": 1},
            **({"runtime_env": {"env_vars": variables}} if variables else {}),
            **resources,
        )(Actor)
        self._actors: dict[int, Any] = {}
        self._names: dict[int, str] = {}
        """Of the processes that are known to live."""
        self._calls: dict[Any, int] = {}

    def start(self, worker: int) -> None:
        if worker not in self._actors:
            self._actors[worker] = self._kind.remote(*self._arguments)
        # Waits for as long as Ray needs to start it, or to start it again.
        hello = self._actors[worker].hello.options(max_task_retries=-1)
        self._calls[hello.remote()] = worker

    def send(self, worker: int, order: Order) -> None:
        if worker in self._names:
            deliver = self._actors[worker].deliver.options(concurrency_group="orders")
            deliver.remote(self._names[worker], order)

    def receive(self, timeout_s: float) -> list[tuple[int, Report]]:
        if not self._calls:
            time.sleep(timeout_s)
            return []
        self._ray.wait(list(self._calls), num_returns=1, timeout=timeout_s)
        ready, _ = self._ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        return [report for call in ready for report in self._answer(call)]

    def stop(self, worker: int, *, for_good: bool = False) -> None:
        self._calls = {call: one for call, one in self._calls.items() if one != worker}
        alive = self._names.pop(worker, None) is not None
        if worker in self._actors and (alive or for_good):
            self._ray.kill(self._actors[worker], no_restart=for_good)
        if for_good:
            self._actors.pop(worker, None)

    def close(self) -> None:
        for worker in list(self._actors):
            with suppress(Exception):  # the cluster may be gone
                self.stop(worker, for_good=True)

    def _answer(self, call: Any) -> list[tuple[int, Report]]:
        worker = self._calls.pop(call)
        try:
            answer = self._ray.get(call)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as error:
            self._names.pop(worker, None)
            return [(worker, Died(_reason(error)))]
        if isinstance(answer, str):
            self._names[worker], answer = answer, []
        again = self._actors[worker].reports.options(concurrency_group="reports")
        self._calls[again.remote(self._names[worker])] = worker
        return [(worker, report) for report in answer]


class Actor:
    """A worker, on the node that Ray has chosen."""

    def __init__(self, job: Job, folder: str, every_s: float) -> None:
        # Ray asks for nothing before this returns, so the model is loaded elsewhere.
        from mvw_cli.batch.workers.serving import Serving

        with suppress(OSError):
            os.chdir(folder)  # paths of items may be relative
        self._name = uuid.uuid4().hex
        self._waiting: SimpleQueue[Report] = SimpleQueue()
        self._serving = Serving(job, self._waiting.put, every_s=every_s)
        threading.Thread(target=self._serving.work, name="mvw-worker", daemon=True).start()

    def hello(self) -> str:
        """Say the name of this process."""
        return self._name

    def deliver(self, name: str, order: Order) -> None:
        """Take an order, if it is meant for this process."""
        if name == self._name:
            self._serving.deliver(order)

    def reports(self, name: str) -> list[Report]:
        """Wait a while for reports, and return those that are there."""
        if name != self._name:
            return [Died("was started again")]
        found: list[Report] = []
        with suppress(Empty):
            found.append(self._waiting.get(timeout=_POLL_S))
            while True:
                found.append(self._waiting.get_nowait())
        return found


def _reason(error: Exception) -> str:
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    if lines and "creation task" in lines[0]:  # what that raised is at the end of a traceback
        return f"could not be started: {lines[-1]}"
    return f"was lost with its process or its node ({type(error).__name__})"
