"""Who serves the items of a batch, as the command line and the machine have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mvw_cli.cli.batch.task import Task

if TYPE_CHECKING:
    from mvw_cli.batch.workers.worker import Executor, Job
    from mvw_cli.profiles.resolution import Resolved


def job_for(task: Task, resolved: Resolved) -> Job:
    """Say what a worker needs to know."""
    from mvw_cli.batch.workers.worker import Job

    return Job(
        resolved.profile,
        allow_pickle=task.allow_pickle,
        random_weights=task.random_weights,
        slots=task.slots,
        kv_bytes=task.kv_memory,
        readers=task.readers,
        read_timeout_s=task.read_timeout,
    )


def make_executor(task: Task, job: Job) -> Executor:
    """Choose who serves the items."""
    if task.executor == "ray":
        from mvw_cli.batch.workers.dispatcher import Dispatcher
        from mvw_cli.batch.workers.ray import RayActors

        return Dispatcher(RayActors(job, workers=task.workers, address=task.ray_address))
    workers = task.workers or _gpus(job)
    if workers > 1:
        from mvw_cli.batch.workers.dispatcher import Dispatcher
        from mvw_cli.batch.workers.local import LocalProcesses

        return Dispatcher(LocalProcesses(job, workers))
    from mvw_cli.batch.workers.worker import Worker

    return Worker(job)


def _gpus(job: Job) -> int:
    """One process for each GPU, unless the profile names one or spreads a model over all."""
    if job.profile.device not in ("auto", "cuda") or job.profile.device_map is not None:
        return 1
    from mvw_cli.machine.facts import gpu_count

    return max(1, gpu_count())
