"""Workers on Ray: this machine's, or those of a cluster. Needs `mvw[ray]`.

A pool of plain actors, each of which holds a model, and not Ray Data's `map_batches`: that gives
an actor a batch of rows and waits for all of its results, so that the slots run empty at the end
of every batch; it wants to read the list of items itself, where here the driver knows what is done
already; and nothing can be told it on the way, to finish what it has begun and stop. (What that
costs is in docs/scaling.md.)

Ray starts the actors where there is room, and starts them again when their process or their node
dies. Which items are tried again, and how often, is decided as for processes on one machine
(`pool.py`), since Ray's own retries would let an item that kills its worker kill it for ever. It
does not know what is said through it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Any, Self

from mvw_cli.batch.executors.messages import Died, Order, Report
from mvw_cli.batch.executors.pool import Pool
from mvw_cli.batch.items import Item
from mvw_cli.batch.serve import State
from mvw_cli.batch.worker import Job
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.plugin_loading import one_line

_POLL_S = 1.0
"""How long a worker that has nothing to report keeps the one who asks waiting."""
_STORE_BYTES = 128 * 2**20
"""Of a Ray of our own: records are small, and Ray would take a third of the memory."""


class OnRay:
    """Serves items by actors on Ray.

    Args:
        workers: how many actors. None: as many as there are GPUs; without any, one on each node.
        address: of a cluster. None: RAY_ADDRESS if that is set, else a Ray on this machine, which
            ends with the run. A Ray that this process is connected to already is used as it is.
    """

    def __init__(self, job: Job, workers: int | None, address: str | None) -> None:
        self._job, self._workers, self._address = job, workers, address
        self._ray: Any = None
        self._is_ours = False
        self._pool: Pool | None = None

    @property
    def revision(self) -> str | None:
        return self._running.revision

    @property
    def state(self) -> State:
        return State() if self._pool is None else self._pool.state

    def records(
        self, items: Iterator[Item], *, run: str, draining: Callable[[], bool]
    ) -> Iterator[dict[str, Any]]:
        return self._running.records(items, run=run, draining=draining)

    def __enter__(self) -> Self:
        """Start or find Ray, and wait for the first actor that has loaded the model.

        Raises:
            UsageProblem: Ray is not installed, there is no cluster at that address, or it has no
                room for these workers.
            MvwError: as `Pool`.
        """
        self._ray = _import()
        self._is_ours = not self._ray.is_initialized()
        try:
            if self._is_ours:
                _connect(self._ray, self._address)
            job, resources = self._place()
            workers = self._workers or self._most()
            if resources.get("num_gpus"):
                self._check_gpus(workers)
            else:
                total = self._ray.cluster_resources().get("CPU", 1)
                resources = {"num_cpus": max(1, total // workers) if workers <= total else 0}
            every_s = 0.25 * max(1.0, workers / 16)
            fleet = _Actors(self._ray, (job, os.getcwd(), every_s), resources)
            self._pool = Pool(fleet, [f"worker {number}" for number in range(workers)])
            self._pool.__enter__()
        except BaseException:
            self._pool = None
            self._leave()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        pool, self._pool = self._pool, None
        try:
            if pool is not None:
                pool.__exit__(*exception)
        finally:
            self._leave()

    @property
    def _running(self) -> Pool:
        assert self._pool is not None
        return self._pool

    def _leave(self) -> None:
        if self._is_ours and self._ray is not None:
            self._ray.shutdown()

    def _place(self) -> tuple[Job, dict[str, float]]:
        """Say what a worker runs on: Ray shows each one its own GPU only."""
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

    def _most(self) -> int:
        return self._gpus() or sum(node["Alive"] for node in self._ray.nodes())

    def _check_gpus(self, workers: int) -> None:
        """Refuse what will never start; a cluster may still grow."""
        gpus = self._gpus()
        if self._is_ours and not self._named and workers > gpus:
            raise UsageProblem(
                f"There are no {workers} GPUs for {workers} workers",
                cause=f"Ray sees {gpus} on this machine, and each worker needs one of its own",
                hint=f"mvw batch IMAGES QUESTION --executor ray --workers {gpus or 1}"
                + ("" if gpus else " --device cpu"),
            )

    @property
    def _named(self) -> bool:
        return _resolved(self._address) != "local"


class _Actors:
    """A fleet of actors.

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
        )(_Actor)
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


class _Actor:
    """A worker, on the node that Ray has chosen."""

    def __init__(self, job: Job, folder: str, every_s: float) -> None:
        # Ray asks for nothing before this returns, so the model is loaded elsewhere.
        from mvw_cli.batch.executors.serving import Serving

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


def _import() -> Any:
    try:
        # Ray prints what its processes have to say of deaths to stdout, where a summary may go.
        with _set("RAY_DEDUP_LOGS_SKIP_REGEX", "."):
            return import_module("ray")
    except ImportError as error:
        raise UsageProblem(
            "--executor ray needs Ray",
            cause=one_line(error),
            hint='pip install "mvw[ray]"',
        ) from None


def _resolved(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or "local"


def _connect(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one here: without its dashboard, statistics and log lines.

    Raises:
        UsageProblem: there is no cluster at that address.
    """
    address = _resolved(address)
    options: dict[str, Any] = {"address": address}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        with _kept():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        cause = next((line for line in str(error).splitlines() if line.strip()), "")
        hint = "mvw batch IMAGES QUESTION --executor "
        if address == "local":
            raise MvwError("Ray can't be started", cause=cause, hint=f"{hint}local") from error
        raise UsageProblem(
            f"There is no Ray at {address}", cause=cause, hint=f"{hint}ray --ray-address local"
        ) from error


@contextmanager
def _kept() -> Iterator[None]:
    """Keep the handler of SIGTERM, which `ray.init` takes over; and send Ray's makers nothing."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with _set("RAY_USAGE_STATS_ENABLED", "0"):
            yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    given = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if given is not None:
            os.environ[name] = given


def _reason(error: Exception) -> str:
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    if lines and "creation task" in lines[0]:  # what that raised is at the end of a traceback
        return f"could not be started: {lines[-1]}"
    return f"was lost with its process or its node ({type(error).__name__})"
