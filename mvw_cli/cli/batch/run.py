"""One `mvw batch` from the command line to its exit code.

Puts the parts together: paths to items, items to an executor, records to the log. What can be
wrong cheaply is found out before the model is loaded, and a record is on disk before it is shown.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from mvw_cli import console
from mvw_cli.batch.source.listing import list_items
from mvw_cli.batch.source.paths import Source
from mvw_cli.batch.store.output import Output, check_table, export, plan_output
from mvw_cli.cli.batch.view import BatchView, Summary, Tally, again
from mvw_cli.cli.process import (
    ShutdownRequest,
    exit_on_interrupt,
    finish_on_interrupt,
    mute_libraries,
)
from mvw_cli.errors import ExitCode, MvwError, UsageProblem

if TYPE_CHECKING:  # PyTorch and pydantic come after the first sign of life
    from mvw_cli.batch.items import Item
    from mvw_cli.batch.store.fingerprint import Fingerprint
    from mvw_cli.batch.store.log import RecordLog
    from mvw_cli.batch.store.worklist import WorkList
    from mvw_cli.batch.workers.dispatcher import Dispatcher
    from mvw_cli.batch.workers.worker import Worker
    from mvw_cli.profiles.resolution import Resolved


@dataclass(frozen=True, slots=True)
class Task:
    """What the command line asks for."""

    words: tuple[str, ...]
    """The arguments as they were typed, for hints."""
    source: Source
    profile: str | None
    flags: Mapping[str, object]
    limit: int | None
    output: str | None
    overwrite: bool
    retry_failed: bool
    dry_run: bool
    slots: int | None
    kv_memory: int | None
    workers: int | None
    executor: str
    ray_address: str | None
    shard: tuple[int, int] | None
    readers: int
    read_timeout: float
    allow_pickle: bool
    random_weights: bool
    as_json: bool

    def again(self, *more: str) -> str:
        """Write the command that was typed with other switches, for hints."""
        return again(self.words, *more)

    def default_name(self) -> str:
        """Name the output after what is asked about."""
        paths, questions = self.source.paths, self.source.questions
        first = paths[0] if paths else questions or "batch"
        name = "stdin" if first == "-" else os.path.basename(first.rstrip("/"))
        if name in ("", ".", ".."):
            name = os.path.basename(os.path.realpath(first)) or "batch"
        stem = name if os.path.isdir(first) else os.path.splitext(name)[0]
        part = "" if self.shard is None else ".{}-of-{}".format(*self.shard)
        return f"{stem}.results{part}.jsonl"

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UsageProblem: it does.
        """
        if self.ray_address is not None and self.executor != "ray":
            raise UsageProblem(
                "--ray-address goes with --executor ray",
                cause=f"the executor is {self.executor}",
                hint=self.again("--executor", "ray"),
            )
        if self.overwrite and self.retry_failed:
            raise UsageProblem(
                "--overwrite and --retry-failed contradict each other",
                cause="one starts afresh, the other goes on",
                hint=self.again("--retry-failed"),
            )
        question = self.source.question
        if question is not None and not question.strip():
            raise UsageProblem(
                "the question is empty",
                cause="a model needs to be asked something",
                hint='mvw batch ./images "What is in the picture?"',
            )

    def check_table(self, output: Output) -> None:
        """Keep a table that this command did not write: there is no log next to it.

        Raises:
            UsageProblem: it would be replaced, or can't be written.
        """
        table = output.table
        if table is None:
            return
        check_table(table)
        if self.overwrite or output.log.exists() or not table.exists():
            return
        if table.stat().st_size:
            raise UsageProblem(
                f"{output.name} is there already",
                cause=f"no {output.log.name} lies next to it, so it comes from something else",
                hint=self.again("--overwrite"),
            )


@dataclass(frozen=True, slots=True)
class RunContext:
    """What is known before a model is loaded."""

    task: Task
    view: BatchView
    resolved: Resolved
    settings: Fingerprint
    output: Output
    worklist: WorkList
    log: RecordLog
    first: Item | None
    """The first of the items that are left to do."""
    others: Iterator[Item]
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
        return _plan(context) if task.dry_run else _serve(context)


def _prepare(task: Task, output: Output, view: BatchView, held: ExitStack) -> RunContext:
    source = task.source
    name = source.paths[0] if source.paths else source.questions
    view.loading(f"the list of items from {name}" if name else "the list of items")
    from mvw_cli.batch.store.fingerprint import fingerprint
    from mvw_cli.batch.store.log import RecordLog
    from mvw_cli.batch.store.worklist import WorkList, pending
    from mvw_cli.profiles.resolution import resolve

    mute_libraries()
    resolved = resolve(task.profile, task.flags)
    if source.question is None:
        source = replace(source, question=resolved.profile.prompt.question)
    worklist = WorkList(list_items(source), limit=task.limit, shard=task.shard)
    settings = fingerprint(resolved, random_weights=task.random_weights)
    log = held.enter_context(
        RecordLog(
            output.log,
            settings,
            listed=worklist,
            shards={} if task.shard is None else {task.shard: len(worklist)},
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
    view.clear()
    return RunContext(task, view, resolved, settings, output, worklist, log, first, items, tally)


def _close(items: Iterator[Item]) -> None:
    """Let go of what a generator holds, unless a reader that hangs is still inside."""
    with suppress(ValueError):
        items.close()  # type: ignore[attr-defined]


def _plan(context: RunContext) -> int:
    """Look at a sample of the items, and write what a run would take."""
    from mvw_cli.batch.serve.capacity import sample, survey
    from mvw_cli.cli.batch.plan import write_plan
    from mvw_cli.profiles.resolution import generation_settings

    task, listed, profile = context.task, context.tally.listed, context.resolved.profile
    items = sample(iter(context.worklist), listed)
    write_plan(
        survey(items, profile, slots=task.slots, kv_bytes=task.kv_memory),
        listed=listed,
        to_do=sum(1 for _ in context.others) + (context.first is not None),
        max_new_tokens=generation_settings(profile).max_new_tokens,
        output=context.output.name,
        as_json=task.as_json,
    )
    return ExitCode.OK


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
        items = chain([context.first], context.others)
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
    summary = Summary(
        context.tally,
        state,
        output=output,
        failed_in_log=context.log.failed,
        interrupted=shutdown.requested,
        words=task.words,
    )
    try:
        if output.table is not None and output.log.exists():
            export(output.log, output.table)
    except MvwError as error:
        stopped = stopped or error
    view.summary(summary)
    if task.as_json:
        console.write_json(summary.facts)
    if stopped is not None:
        raise stopped
    if shutdown.requested and context.tally.remaining:
        return ExitCode.INTERRUPTED
    return ExitCode.ITEMS_FAILED if context.log.failed else ExitCode.OK


def make_executor(task: Task, resolved: Resolved) -> Worker | Dispatcher:
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
    if task.executor == "ray":
        from mvw_cli.batch.workers.dispatcher import Dispatcher
        from mvw_cli.batch.workers.ray import RayActors

        return Dispatcher(RayActors(job, task.workers, task.ray_address))
    workers = task.workers
    if workers is None:
        # Unless the profile names one GPU or spreads a model over all.
        all_gpus = job.profile.device in ("auto", "cuda") and job.profile.device_map is None
        workers = gpu_count() if all_gpus else 1
    if workers <= 1:
        return Worker(job)
    from mvw_cli.batch.workers.dispatcher import Dispatcher
    from mvw_cli.batch.workers.local import LocalProcesses

    return Dispatcher(LocalProcesses(job, workers))


def _load(executor: Worker | Dispatcher, context: RunContext, held: ExitStack) -> None:
    view, resolved = context.view, context.resolved
    model = resolved.profile.model
    if model is None:
        view.loading(resolved.name or resolved.profile.adapter)
    else:
        view.loading_model(model, resolved.profile.revision)
    held.enter_context(executor)
    view.clear()
    context.log.settle(context.settings.with_revision(executor.revision))


def _record(
    executor: Worker | Dispatcher,
    items: Iterator[Item],
    context: RunContext,
    shutdown: ShutdownRequest,
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
