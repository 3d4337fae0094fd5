"""Workers on Ray: this machine's, or those of a cluster. Needs `mvw[ray]`.

A pool of plain actors, each of which holds a model, and not Ray Data's `map_batches`. That gives an
actor a batch of rows and waits for all of its results, so that slots run empty at the end of every
batch; docs/scaling.md counts what that costs. Asynchronous calls can overlap batches, but two
things remain: it wants to read the list of items itself, where here the driver knows what is done
already; and it can't be told on the way to finish what is begun and stop, nor say how things stand.

Ray starts the actors where there is room, and starts them again when their process or their node
dies. Which items are tried again, and how often, is decided as for processes on one machine
(`pool.py`), since Ray's own retries would let an item that kills its worker kill it for ever. How
messages travel is in `ray_actors.py`.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any, Self

from mvw_cli.batch.items import Item
from mvw_cli.batch.serve.server import State
from mvw_cli.batch.workers.pool import Pool
from mvw_cli.batch.workers.ray_actors import Actors
from mvw_cli.batch.workers.worker import Job
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.text import error_line

_STORE_BYTES = 128 * 2**20
"""Of a Ray of our own: records are small, and Ray would take a third of the memory."""
_KNOCK_S = 10.0
_AUTH = "RAY_AUTH_MODE"


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
                job = replace(job, sharers=math.ceil(workers / self._nodes()))
                total = self._ray.cluster_resources().get("CPU", 1)
                resources = {"num_cpus": max(1, total // workers) if workers <= total else 0}
            every_s = 0.25 * max(1.0, workers / 16)
            fleet = Actors(self._ray, (job, os.getcwd(), every_s), resources)
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
        return self._gpus() or self._nodes()

    def _nodes(self) -> int:
        return max(1, [node["Alive"] for node in self._ray.nodes()].count(True))

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


def _import() -> Any:
    try:
        # Ray prints what its processes have to say of deaths to stdout, where a summary may go.
        with _set("RAY_DEDUP_LOGS_SKIP_REGEX", "."):
            return import_module("ray")
    except ImportError as error:
        raise UsageProblem(
            "--executor ray needs Ray",
            cause=error_line(error),
            hint='pip install "mvw[ray]"',
        ) from None


def _resolved(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or "local"


def _connect(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one here: without its dashboard, statistics and log lines.

    Raises:
        UsageProblem: there is no cluster at that address, or it does not let us in.
    """
    address = _resolved(address)
    options: dict[str, Any] = {"address": address}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    hint = "mvw batch IMAGES QUESTION --executor "
    try:
        _knock(address)
        with _kept():
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


def _knock(address: str) -> None:
    """Find out at once that nobody is there: Ray would try for more than a minute."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


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
