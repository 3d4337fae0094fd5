"""One `mvw batch` from the command line to its exit code.

Puts the parts together: paths to items, items to an executor, records to the log. What can be
wrong cheaply is found out before the model is loaded, and a record is on disk before it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from mvw_cli import console
from mvw_cli.batch.source.listing import list_items
from mvw_cli.batch.store.output import Output, plan_output
from mvw_cli.batch.store.tally import Tally
from mvw_cli.cli.batch.task import Task
from mvw_cli.cli.batch.view import BatchView, Summary, summarise
from mvw_cli.cli.process import (
    ShutdownRequest,
    exit_on_interrupt,
    finish_on_interrupt,
    mute_libraries,
)
from mvw_cli.cli.stderr_view import loading_progress
from mvw_cli.errors import ExitCode, MvwError

if TYPE_CHECKING:  # PyTorch and pydantic come after the first sign of life
    from mvw_cli.batch.items import Item
    from mvw_cli.batch.store.log import RecordLog
    from mvw_cli.batch.store.worklist import WorkList
    from mvw_cli.batch.workers.worker import Executor
    from mvw_cli.profiles.resolution import Resolved


@dataclass(frozen=True, slots=True)
class RunContext:
    """What is known before a model is loaded."""

    task: Task
    view: BatchView
    resolved: Resolved
    output: Output
    worklist: WorkList
    log: RecordLog
    settle: Callable[[str | None], None]
    """Tells the log which revision was loaded."""
    items: Iterator[Item]
    """Those that are left to do."""
    first: Item | None
    """The first of them, taken out already."""
    tally: Tally


def run(task: Task) -> int:
    """Do what the command line asks for, and return the exit code.

    Raises:
        MvwError: what stops all items. What stops one is in its record.
    """
    task.check()
    output = plan_output(task.output, task.default_name())
    task.check_table(output)
    view = BatchView()
    with ExitStack() as held:
        with exit_on_interrupt(view.on_interrupt), view.making_room():
            context = _prepare(task, output, view, held)
        if not task.dry_run:
            return _serve(context)
        from mvw_cli.cli.batch.plan import write_plan

        to_do = sum(1 for _ in context.items) + (context.first is not None)
        profile = context.resolved.profile
        write_plan(task, profile, context.worklist, context.tally, to_do=to_do, output=output.name)
        return ExitCode.OK


def _prepare(task: Task, output: Output, view: BatchView, held: ExitStack) -> RunContext:
    name = task.paths[0] if task.paths else task.questions
    view.loading(f"the list of items from {name}" if name else "the list of items")
    from mvw_cli.batch.store.fingerprint import WorkPart, fingerprint
    from mvw_cli.batch.store.log import RecordLog
    from mvw_cli.batch.store.worklist import WorkList, pending
    from mvw_cli.profiles.resolution import resolve

    mute_libraries()
    resolved = resolve(task.profile, task.flags)
    source = task.source(resolved.profile.prompt.question)
    worklist = WorkList(list_items(source), limit=task.limit, shard=task.shard)
    if output.fetch():
        view.note(f"The records at {output.name} were fetched: {output.log}")
    settings = fingerprint(resolved, random_weights=task.random_weights)
    log = held.enter_context(
        RecordLog(
            output.log,
            settings,
            part=WorkPart(task.shard, len(worklist)),
            overwrite=task.overwrite,
            retry_failed=task.retry_failed,
            hint_overwrite=task.again("--overwrite"),
        )
    )
    view.clean_up = log.leave
    for line in log.recovered:
        view.warn(line)
    tally = Tally(listed=len(worklist))
    items = pending(
        worklist, log, threads=task.readers, timeout_s=task.read_timeout, skipped=tally.skip
    )
    held.callback(_close, items)
    first = next(items, None)
    view.loaded()

    def settle(revision: str | None) -> None:
        log.settle(settings.with_revision(revision))

    return RunContext(task, view, resolved, output, worklist, log, settle, items, first, tally)


def _close(items: Iterator[Item]) -> None:
    """Let go of what a generator holds, unless a reader that hangs is still inside."""
    with suppress(ValueError):
        items.close()  # type: ignore[attr-defined]


def _serve(context: RunContext) -> int:
    """Answer what is left, and tell how it went."""
    task, view, output = context.task, context.view, context.output
    shutdown = ShutdownRequest()
    stopped: MvwError | None = None
    state = None
    if context.first is None:
        view.note(_nothing_left(context.tally))
    else:
        _introduce(context)
        executor = make_executor(task, context.resolved)
        items = chain([context.first], context.items)
        with ExitStack() as held:
            with exit_on_interrupt(view.on_interrupt), view.making_room():
                _load(executor, context, held)
            with finish_on_interrupt(view.on_interrupt) as shutdown:
                try:
                    _record(executor, items, context, shutdown)
                except MvwError as error:
                    stopped = error
                except RuntimeError as error:
                    stopped = _lost(context, error)
            state = executor.state
    context.log.flush()
    summary = summarise(
        context.tally,
        state,
        output=output,
        failed_in_log=context.log.failed,
        interrupted=shutdown.requested,
        words=task.words,
    )
    try:
        output.publish()
    except MvwError as error:
        stopped = stopped or error
    view.summary(summary)
    if task.as_json:
        console.write_json(summary.to_dict())
    if stopped is not None:
        raise stopped
    return _exit_code(summary)


def make_executor(task: Task, resolved: Resolved) -> Executor:
    """Choose who serves the items: by default one process for each GPU.

    Raises:
        UsageProblem: there are not so many GPUs as workers.
    """
    from mvw_cli.batch.workers.worker import Job, Worker
    from mvw_cli.machine.facts import gpu_count

    job = Job(
        resolved.profile,
        allow_pickle=task.allow_pickle,
        random_weights=task.random_weights,
        slots=task.slots,
        kv_bytes=task.kv_memory,
        readers=task.readers,
        read_timeout_s=task.read_timeout,
    )
    workers = task.workers
    if task.executor != "ray" and workers is None:
        # Unless the profile names one GPU or spreads a model over all.
        all_gpus = job.profile.device in ("auto", "cuda") and job.profile.device_map is None
        workers = gpu_count() if all_gpus else 1
    if task.executor != "ray" and (workers or 1) == 1:
        return Worker(job)
    from mvw_cli.batch.workers.dispatcher import Dispatcher

    if task.executor == "ray":
        from mvw_cli.batch.workers.ray import RayActors

        return Dispatcher(RayActors(job, workers, task.ray_address))
    from mvw_cli.batch.workers.local import LocalProcesses

    return Dispatcher(LocalProcesses(job, workers or 1))


def _load(executor: Executor, context: RunContext, held: ExitStack) -> None:
    view, resolved = context.view, context.resolved
    model = resolved.profile.model
    if view.live and model is not None:
        view.loading_tells(loading_progress(model, resolved.profile.revision))
    view.loading(model or resolved.name or resolved.profile.adapter)
    try:
        held.enter_context(executor)
    finally:
        view.loaded()
    context.settle(executor.revision)


def _record(
    executor: Executor, items: Iterator[Item], context: RunContext, shutdown: ShutdownRequest
) -> None:
    """Bring records to the log as they come."""
    log, tally, view = context.log, context.tally, context.view

    def draining() -> bool:
        return shutdown.requested

    tally.begin()
    with view.following(tally, lambda: executor.state, draining):
        for record in executor.records(items, run=log.run, draining=draining):
            log.append(record)
            tally.add(record)
            view.show(record)


def _introduce(context: RunContext) -> None:
    view, log = context.view, context.log
    if context.resolved.is_default:
        view.note(
            f"No profile or model is named: the embedded `{context.resolved.name}` answers, which "
            "reads only scenes of coloured shapes. A real one: --model ORG/NAME or --profile NAME."
        )
    if context.task.random_weights:
        view.warn("The weights are random: answers are noise. Time and memory are real.")
    if log.done or log.failed:
        view.note(
            f"Going on with {context.output.log}: {log.done:,} answered, "
            f"{log.failed:,} failed before."
        )


def _nothing_left(tally: Tally) -> str:
    if not tally.listed:
        return "There is nothing to do: no item belongs to this part of the work."
    return f"There is nothing left to do: each of {tally.listed:,} items has its record."


def _lost(context: RunContext, error: RuntimeError) -> MvwError:
    """Make the error of an accelerator that serves this process no more; raise any other."""
    from mvw_cli.engine.memory import lost_device

    if not lost_device(error):
        raise error
    reason = next(iter(str(error).splitlines()), "it gives no reason")
    return MvwError(
        "The accelerator has failed, and this process can't use it any more",
        cause=f"{reason}; {context.tally.served:,} records were written, none is lost",
        hint=context.task.again(),
    )


def _exit_code(summary: Summary) -> int:
    if summary.interrupted and summary.remaining:
        return ExitCode.INTERRUPTED
    return ExitCode.ITEMS_FAILED if summary.failed_in_log else ExitCode.OK
