"""Workers on Ray: this machine's, or those of a cluster. Needs `mvw[ray]`.

Plain actors, each of which holds a model, and not Ray Data's `map_batches`. That gives an actor a
batch of rows and waits for all of its results, so that slots run empty at the end of every batch;
docs/scaling.md counts what that costs. Asynchronous calls can overlap batches, but two things
remain: it wants to read the list of items itself, where here the driver knows what is done already;
and it can't be told on the way to finish what is begun and stop, nor report how things stand.

Ray starts the actors where there is room. When the process or the node of one dies, another takes
its place. Which items are tried again, and how often, is the dispatcher's to decide, since Ray's
own retries would let an item that kills its worker kill it for ever.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Any

from mvw_cli.batch.workers.worker import Job, Message, RemoteWorker
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.text import error_line
from mvw_cli.vllm.start import over_ray, replica_gpus

_STORE_BYTES = 128 * 2**20
"""Of a Ray of our own: records are small, and Ray would take a third of the memory."""
_CONNECT_S = 10.0
_POLL_S = 1.0
"""How long a worker that has nothing to report keeps the one who asks waiting."""


class RayActors:
    """A launcher of actors. One long call after the other returns what an actor has to report.

    Args:
        workers: how many. None: as many as there are GPUs for; without any, one on each node.
        address: of a cluster. None: RAY_ADDRESS if that is set, else a Ray on this machine, which
            ends with the run. A Ray that this process is connected to already is used as it is.
    """

    def __init__(self, job: Job, workers: int | None, address: str | None) -> None:
        self._job, self._workers = job, workers
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        self._ray: Any = None
        self._is_ours = False
        self._kind: Any = None
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}

    def open(self) -> list[str]:
        """Start or find Ray, and decide what an actor runs on.

        Raises:
            UsageProblem: Ray is not installed, there is no cluster at that address, or it has no
                room for these workers.
        """
        if over_ray(self._job.profile):
            raise UsageProblem(
                "engine_args.distributed_executor_backend: ray is not for --executor ray",
                cause="vLLM would ask Ray for the GPUs that Ray has given to its worker",
                hint="mvw batch IMAGES QUESTION --executor local",
            )
        self._ray = import_ray()
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            connect(self._ray, self._address)
        job, cluster = self._job, self._ray.cluster_resources()
        gpus, each = int(cluster.get("GPU", 0)), replica_gpus(job.profile)
        nodes = max(1, [node["Alive"] for node in self._ray.nodes()].count(True))
        workers = self._workers or gpus // each or nodes
        if job.profile.device.startswith("cuda") or (job.profile.device == "auto" and gpus):
            # What will never start is refused; a cluster may still grow.
            if self._is_ours and self._address == "local" and workers * each > gpus:
                raise UsageProblem(
                    f"There are no {workers * each} GPUs for {workers} workers",
                    cause=f"Ray sees {gpus} on this machine, and each worker needs "
                    f"{'one' if each == 1 else each} of its own",
                    hint=f"mvw batch IMAGES QUESTION --executor ray --workers {gpus // each or 1}"
                    + ("" if gpus else " --device cpu"),
                )
            job = job.on("cuda")  # Ray shows each worker its own GPUs only
            resources = {"num_gpus": each, "num_cpus": 1}
        else:
            job = replace(job, sharers=math.ceil(workers / nodes))
            total = cluster.get("CPU", 1)
            resources = {"num_cpus": max(1, total // workers) if workers <= total else 0}
        groups = {"orders": 1, "reports": 1}
        options = self._ray.remote(concurrency_groups=groups, max_restarts=0, **resources)
        self._kind, self._job = options(Actor), job
        return [f"worker {number}" for number in range(workers)]

    def start(self, worker: int) -> None:
        self._actors[worker] = self._kind.remote(self._job, os.getcwd())
        self._ask(worker)  # answered once Ray has found room for it

    def send(self, worker: int, order: Message) -> None:
        if worker in self._actors:
            deliver = self._actors[worker].deliver.options(concurrency_group="orders")
            deliver.remote(order)

    def receive(self, timeout_s: float) -> list[tuple[int, Message]]:
        if not self._calls:
            time.sleep(timeout_s)
            return []
        self._ray.wait(list(self._calls), num_returns=1, timeout=timeout_s)
        ready, _ = self._ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        messages = []
        for call in ready:
            worker = self._calls.pop(call)
            try:
                messages += [(worker, message) for message in self._ray.get(call)]
                self._ask(worker)
            except self._ray.exceptions.RayTaskError:
                raise
            except self._ray.exceptions.RayError as error:
                messages.append((worker, Message("exited", f"was lost: {error_line(error)}")))
        return messages

    def stop(self, worker: int) -> None:
        self._calls = {call: one for call, one in self._calls.items() if one != worker}
        if worker in self._actors:
            self._ray.kill(self._actors.pop(worker))

    def close(self) -> None:
        for worker in list(self._actors):
            with suppress(Exception):  # the cluster may be gone
                self.stop(worker)
        if self._is_ours and self._ray is not None:
            self._ray.shutdown()

    def _ask(self, worker: int) -> None:
        reports = self._actors[worker].reports.options(concurrency_group="reports")
        self._calls[reports.remote()] = worker


class Actor:
    """A worker, on the node that Ray has chosen."""

    def __init__(self, job: Job, folder: str) -> None:
        with suppress(OSError):
            os.chdir(folder)  # paths of items may be relative
        self._waiting: SimpleQueue[Message] = SimpleQueue()
        self._remote = RemoteWorker(job, self._waiting.put)
        # In a thread: Ray asks for nothing before this returns, and loading takes its time.
        threading.Thread(target=self._remote.work, name="mvw-worker", daemon=True).start()

    def deliver(self, order: Message) -> None:
        """Take an order."""
        self._remote.deliver(order)

    def reports(self) -> list[Message]:
        """Wait a while for messages, and return those that are there."""
        found: list[Message] = []
        with suppress(Empty):
            found.append(self._waiting.get(timeout=_POLL_S))
            while True:
                found.append(self._waiting.get_nowait())
        return found


def import_ray() -> Any:
    """Import Ray, so that it sends its makers nothing and writes nothing to stdout.

    Raises:
        UsageProblem: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # It would write there what its processes have to say of deaths, in the midst of a summary.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        return import_module("ray")
    except ImportError as error:
        raise UsageProblem(
            "--executor ray needs Ray",
            cause=error_line(error),
            hint='pip install "mvw[ray]"',
        ) from None


def connect(ray: Any, address: str) -> None:
    """Connect to a cluster, or start one here: without its dashboard and log lines.

    Raises:
        UsageProblem: there is no cluster at that address, or it does not let us in.
    """
    options: dict[str, Any] = {"address": address}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    hint = "mvw batch IMAGES QUESTION --executor "
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _check_reachable(address)
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, ValueError, RuntimeError) as error:
        cause = next((line for line in str(error).splitlines() if line.strip()), "")
        if address == "local":
            raise MvwError("Ray can't be started", cause=cause, hint=f"{hint}local") from error
        raise UsageProblem(
            f"There is no Ray at {address}", cause=cause, hint=f"{hint}ray --ray-address local"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # which Ray takes over


def _check_reachable(address: str) -> None:
    """Find out at once that nobody is there: Ray would try for more than a minute."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
