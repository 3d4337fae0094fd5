"""One process for each GPU of this machine; on a CPU, as many as are asked for.

Each has a pipe of its own, so that one that is killed while it writes harms no other's messages;
they are spawned, since CUDA does not survive a fork. What they say to each other is in
`messages.py`, and what is done about it in `pool.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from mvw_cli.batch.workers import child
from mvw_cli.batch.workers.child_process import how_it_ended, undisturbed
from mvw_cli.batch.workers.messages import Died, Order, Report
from mvw_cli.batch.workers.pool import Pool
from mvw_cli.batch.workers.worker import Job
from mvw_cli.errors import UsageProblem

_REAP_S = 5.0


class Processes(Pool):
    """Serves items in several processes of this machine.

    Args:
        workers: how many.

    Raises:
        UsageProblem: there are not so many devices.
    """

    def __init__(self, job: Job, workers: int) -> None:
        chosen = devices(job, workers)
        sharers = chosen.count("cpu") or 1
        jobs = [replace(job.on(device), sharers=sharers) for device in chosen]
        names = [
            f"worker {number} ({device})" if device == "cpu" else device
            for number, device in enumerate(chosen)
        ]
        super().__init__(_Pipes(jobs), names)


def devices(job: Job, workers: int) -> list[str]:
    """Choose a device for each worker; this imports PyTorch.

    Raises:
        UsageProblem: there are not so many devices, or the profile asks for a single one.
    """
    from mvw_cli.machine.facts import gpu_count

    asked, gpus = job.profile.device, gpu_count()
    if asked == "cpu" or (asked == "auto" and not gpus and not _has_mps()):
        return ["cpu"] * workers
    if workers == 1:
        return [asked]
    if job.profile.device_map is not None:
        raise UsageProblem(
            f"{workers} workers and device_map: {job.profile.device_map} contradict each other",
            cause="each worker has one GPU, and a device map spreads the model over all of them",
            hint="mvw batch IMAGES QUESTION --workers 1",
        )
    if asked not in ("auto", "cuda") or not gpus:
        name = "the one GPU of this machine" if asked in ("auto", "mps") else asked
        raise UsageProblem(
            f"{workers} workers can't share {name}",
            cause="each would hold the model again, and none would be faster",
            hint="mvw batch IMAGES QUESTION --workers 1",
        )
    if workers > gpus:
        raise UsageProblem(
            f"There are no {workers} GPUs for {workers} workers",
            cause=f"PyTorch sees {gpus}, and each worker needs one of its own",
            hint=f"mvw batch IMAGES QUESTION --workers {gpus}",
        )
    return [f"cuda:{number}" for number in range(workers)]


class _Pipes:
    """A fleet of processes."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._context = get_context("spawn")
        self._running: dict[int, tuple[SpawnProcess, Connection]] = {}

    def start(self, worker: int) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=child.main,
            args=(theirs, self._jobs[worker], len(self._jobs)),
            name=f"mvw-worker-{worker}",
        )
        try:
            with undisturbed():
                process.start()
        finally:
            theirs.close()  # else its end would not be noticed
        self._running[worker] = process, ours

    def send(self, worker: int, order: Order) -> None:
        if worker in self._running:
            with suppress(OSError):  # `receive` meets the end of the pipe
                self._running[worker][1].send(order)

    def receive(self, timeout_s: float) -> list[tuple[int, Report]]:
        numbers = {pipe: worker for worker, (_, pipe) in self._running.items()}
        reports: list[tuple[int, Report]] = []
        for pipe in connection.wait(list(numbers), timeout_s):
            assert isinstance(pipe, Connection)
            try:
                report = pipe.recv()
            except (EOFError, OSError):
                report = Died(self._reap(numbers[pipe]))
            reports.append((numbers[pipe], report))
        return reports

    def stop(self, worker: int, *, for_good: bool = False) -> None:
        if worker in self._running:
            self._reap(worker, kill=True)

    def close(self) -> None:
        for process, _ in self._running.values():
            process.kill()
        for worker in list(self._running):
            self._reap(worker, kill=True)

    def _reap(self, worker: int, kill: bool = False) -> str:
        """Wait for the end of a process, and say what it was."""
        process, pipe = self._running.pop(worker)
        pipe.close()
        if not kill:
            process.join(_REAP_S)
        if process.exitcode is None:
            process.kill()
            process.join()
        code = process.exitcode or 0
        process.close()
        return how_it_ended(code)


def _has_mps() -> bool:
    import torch

    return torch.backends.mps.is_available()
