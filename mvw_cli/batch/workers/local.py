"""One process for each GPU of this machine; on a CPU, as many as are asked for.

Each has a pipe of its own, so that one that is killed while it writes harms no other's messages;
they are spawned, since CUDA does not survive a fork. A process lives as long as its parent does:
when the pipe closes, it ends at once, whatever it is doing.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import torch

from mvw_cli.batch.workers.worker import Job, Message, RemoteWorker
from mvw_cli.errors import UsageProblem
from mvw_cli.machine import facts
from mvw_cli.machine.child_process import be_quiet, exit_now, exit_reason, signals_blocked
from mvw_cli.vllm.start import over_ray, replica_gpus

_REAP_S = 5.0


def devices(job: Job, workers: int) -> list[str]:
    """Choose a device for each worker: the first one, where vLLM spreads a replica over several.

    Raises:
        UsageProblem: there are not so many devices, or the profile asks for a single one.
    """
    asked, gpus, each = job.profile.device, facts.gpu_count(), replica_gpus(job.profile)
    has_accelerator = gpus or torch.backends.mps.is_available()
    if asked == "cpu" or (asked == "auto" and not has_accelerator):
        return ["cpu"] * workers
    if workers == 1:
        return [asked]
    usable, why = gpus, f"PyTorch sees {gpus}"
    if job.profile.device_map is not None:
        usable, why = 1, f"device_map: {job.profile.device_map} spreads the model over all of them"
    elif over_ray(job.profile):
        usable, why = 1, "engine_args.distributed_executor_backend: ray spreads it over a cluster"
    elif asked not in ("auto", "cuda"):
        usable, why = 1, f"the device is {asked}"
    if workers * each > usable:
        raise UsageProblem(
            f"There are no {workers * each} GPUs for {workers} workers",
            cause=f"{why}, and each worker needs {'one' if each == 1 else each} of its own",
            hint=f"mvw batch IMAGES QUESTION --workers {max(1, usable // each)}",
        )
    return [f"cuda:{number * each}" for number in range(workers)]


class LocalProcesses:
    """A launcher of several processes on this machine, with a pipe to each.

    Raises:
        UsageProblem: as `devices`.
    """

    def __init__(self, job: Job, workers: int) -> None:
        self._devices = devices(job, workers)
        sharers = self._devices.count("cpu") or 1
        self._jobs = [replace(job.on(device), sharers=sharers) for device in self._devices]
        self._context = get_context("spawn")
        self._running: dict[int, tuple[SpawnProcess, Connection]] = {}

    def open(self) -> list[str]:
        return [
            f"worker {number} ({device})" if device == "cpu" else device
            for number, device in enumerate(self._devices)
        ]

    def start(self, worker: int) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=child_main,
            args=(theirs, self._jobs[worker], len(self._jobs)),
            name=f"mvw-worker-{worker}",
        )
        try:
            with signals_blocked():
                process.start()
        finally:
            theirs.close()  # else its end would not be noticed
        self._running[worker] = process, ours

    def send(self, worker: int, order: Message) -> None:
        if worker in self._running:
            with suppress(OSError):  # `receive` meets the end of the pipe
                self._running[worker][1].send(order)

    def receive(self, timeout_s: float) -> list[tuple[int, Message]]:
        numbers = {pipe: worker for worker, (_, pipe) in self._running.items()}
        messages: list[tuple[int, Message]] = []
        for pipe in connection.wait(list(numbers), timeout_s):
            assert isinstance(pipe, Connection)
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                message = Message("exited", self._reap(numbers[pipe]))
            messages.append((numbers[pipe], message))
        return messages

    def stop(self, worker: int) -> None:
        if worker in self._running:
            self._running[worker][0].kill()
            self._reap(worker)

    def close(self) -> None:
        for process, _ in self._running.values():
            process.kill()
        for worker in list(self._running):
            self._reap(worker)

    def _reap(self, worker: int) -> str:
        """Wait for the end of a process, and describe it."""
        process, pipe = self._running.pop(worker)
        pipe.close()
        process.join(_REAP_S)
        process.kill()
        process.join()
        code = process.exitcode or 0
        process.close()
        return exit_reason(code)


def child_main(pipe: Connection, job: Job, workers: int) -> None:
    """Serve what comes through the pipe: the worker's process.

    Args:
        workers: that many share the cores of this machine.
    """
    be_quiet()
    lock = threading.Lock()

    def send(message: Message) -> None:
        try:
            with lock:
                pipe.send(message)
        except OSError:
            exit_now()

    remote = RemoteWorker(job, send)

    def listen() -> None:
        while True:
            try:
                order = pipe.recv()
            except (EOFError, OSError):
                return exit_now()
            remote.deliver(order)

    threading.Thread(target=listen, name="mvw-orders", daemon=True).start()
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    remote.work()
    exit_now()  # a reader that hangs in native code must not hold it up
