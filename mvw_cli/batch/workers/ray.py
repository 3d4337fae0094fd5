"""Workers on Ray: this machine's, or those of a cluster. Needs `mvw[ray]`.

Plain actors, each of which holds a model, and not Ray Data's `map_batches`. That gives an actor a
batch of rows and waits for all of its results, so that slots run empty at the end of every batch;
docs/scaling.md counts what that costs. Asynchronous calls can overlap batches, but two things
remain: it wants to read the list of items itself, where here the driver knows what is done already;
and it can't be told on the way to finish what is begun and stop, nor report how things stand.

Ray starts the actors where there is room, and starts them again when their process or their node
dies. Which items are tried again, and how often, is the dispatcher's to decide, since Ray's own
retries would let an item that kills its worker kill it for ever.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Any

from mvw_cli.batch.workers.worker import Exited, Job, Order, RemoteWorker, Report
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.text import error_line

_STORE_BYTES = 128 * 2**20
"""Of a Ray of our own: records are small, and Ray would take a third of the memory."""
_CONNECT_S = 10.0
_POLL_S = 1.0
"""How long a worker that has nothing to report keeps the one who asks waiting."""
_AUTH = "RAY_AUTH_MODE"


class RayActors:
    """A launcher of actors. One long call after the other returns what an actor has to report.

    A new process of the same actor has a new name for itself, so that no order meant for its
    predecessor reaches it.

    Args:
        workers: how many. None: as many as there are GPUs; without any, one on each node.
        address: of a cluster. None: RAY_ADDRESS if that is set, else a Ray on this machine, which
            ends with the run. A Ray that this process is connected to already is used as it is.
    """

    def __init__(self, job: Job, workers: int | None, address: str | None) -> None:
        self._job, self._workers = job, workers
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        self._ray: Any = None
        self._is_ours = False
        self._kind: Any = None
        self._arguments: tuple[Any, ...] = ()
        self._actors: dict[int, Any] = {}
        self._names: dict[int, str] = {}
        """Of the processes that are known to live."""
        self._calls: dict[Any, int] = {}

    def open(self) -> list[str]:
        """Start or find Ray, and decide what an actor runs on.

        Raises:
            UsageProblem: Ray is not installed, there is no cluster at that address, or it has no
                room for these workers.
        """
        self._ray = import_ray()
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            connect(self._ray, self._address)
        job, resources = self._place()
        workers = self._workers or self._gpus() or self._nodes()
        if resources.get("num_gpus"):
            self._check_gpus(workers)
        else:
            job = replace(job, sharers=math.ceil(workers / self._nodes()))
            total = self._ray.cluster_resources().get("CPU", 1)
            resources = {"num_cpus": max(1, total // workers) if workers <= total else 0}
        variables = {name: value for name, value in os.environ.items() if name.startswith("MVW_")}
        self._kind = self._ray.remote(
            max_restarts=-1,
            max_task_retries=0,
            concurrency_groups={"orders": 1, "reports": 1},
            **({"runtime_env": {"env_vars": variables}} if variables else {}),
            **resources,
        )(Actor)
        self._arguments = (job, os.getcwd(), 0.25 * max(1.0, workers / 16))
        return [f"worker {number}" for number in range(workers)]

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
        if self._is_ours and self._ray is not None:
            self._ray.shutdown()

    def _answer(self, call: Any) -> list[tuple[int, Report]]:
        worker = self._calls.pop(call)
        try:
            answer = self._ray.get(call)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError as error:
            self._names.pop(worker, None)
            return [(worker, Exited(_reason(error)))]
        if isinstance(answer, str):
            self._names[worker], answer = answer, []
        again = self._actors[worker].reports.options(concurrency_group="reports")
        self._calls[again.remote(self._names[worker])] = worker
        return [(worker, report) for report in answer]

    def _place(self) -> tuple[Job, dict[str, float]]:
        """Decide what a worker runs on: Ray shows each one its own GPU only."""
        asked = self._job.profile.device
        if self._job.profile.device_map is not None:
            raise UsageProblem(
                f"--executor ray and device_map: {self._job.profile.device_map} contradict each "
                "other",
                cause="Ray gives each worker one GPU, and a device map spreads the model over all",
                hint="mvw batch IMAGES QUESTION --executor local",
            )
        if asked.startswith("cuda") or (asked == "auto" and self._gpus()):
            return self._job.on("cuda"), {"num_gpus": 1, "num_cpus": 1}
        return self._job, {}

    def _gpus(self) -> int:
        return int(self._ray.cluster_resources().get("GPU", 0))

    def _nodes(self) -> int:
        return max(1, [node["Alive"] for node in self._ray.nodes()].count(True))

    def _check_gpus(self, workers: int) -> None:
        """Refuse what will never start; a cluster may still grow."""
        gpus = self._gpus()
        if self._is_ours and self._address == "local" and workers > gpus:
            raise UsageProblem(
                f"There are no {workers} GPUs for {workers} workers",
                cause=f"Ray sees {gpus} on this machine, and each worker needs one of its own",
                hint=f"mvw batch IMAGES QUESTION --executor ray --workers {gpus or 1}"
                + ("" if gpus else " --device cpu"),
            )


class Actor:
    """A worker, on the node that Ray has chosen."""

    def __init__(self, job: Job, folder: str, every_s: float) -> None:
        with suppress(OSError):
            os.chdir(folder)  # paths of items may be relative
        self._name = uuid.uuid4().hex
        self._waiting: SimpleQueue[Report] = SimpleQueue()
        self._remote = RemoteWorker(job, self._waiting.put, every_s=every_s)
        # In a thread: Ray asks for nothing before this returns, and loading takes its time.
        threading.Thread(target=self._remote.work, name="mvw-worker", daemon=True).start()

    def hello(self) -> str:
        """Return the name of this process."""
        return self._name

    def deliver(self, name: str, order: Order) -> None:
        """Take an order, if it is meant for this process."""
        if name == self._name:
            self._remote.deliver(order)

    def reports(self, name: str) -> list[Report]:
        """Wait a while for reports, and return those that are there."""
        if name != self._name:
            return [Exited("was started again")]
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


def import_ray() -> Any:
    try:
        # Ray prints what its processes have to say of deaths to stdout, where a summary may go.
        with _variable("RAY_DEDUP_LOGS_SKIP_REGEX", "."):
            return import_module("ray")
    except ImportError as error:
        raise UsageProblem(
            "--executor ray needs Ray",
            cause=error_line(error),
            hint='pip install "mvw[ray]"',
        ) from None


def connect(ray: Any, address: str) -> None:
    """Connect to a cluster, or start one here: without its dashboard, statistics and log lines.

    Raises:
        UsageProblem: there is no cluster at that address, or it does not let us in.
    """
    options: dict[str, Any] = {"address": address}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    hint = "mvw batch IMAGES QUESTION --executor "
    try:
        _check_reachable(address)
        with _undisturbed():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, ValueError, RuntimeError) as error:
        cause = next((line for line in str(error).splitlines() if line.strip()), "")
        if address == "local":
            raise MvwError("Ray can't be started", cause=cause, hint=f"{hint}local") from error
        if type(error) in (RuntimeError, ConnectionError) and not os.environ.get(_AUTH):
            cause += f"; if the cluster asks for a token, set {_AUTH}=token"
        raise UsageProblem(
            f"There is no Ray at {address}", cause=cause, hint=f"{hint}ray --ray-address local"
        ) from error


def _check_reachable(address: str) -> None:
    """Find out at once that nobody is there: Ray would try for more than a minute."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the handler of SIGTERM, which `ray.init` takes over; and send Ray's makers nothing."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with _variable("RAY_USAGE_STATS_ENABLED", "0"):
            yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    given = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if given is not None:
            os.environ[name] = given
