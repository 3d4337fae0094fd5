"""One `mvw batch` from the command line to its exit code.

Puts the parts together: paths to items, items to an executor, records to the log. What can be
wrong cheaply is found out before the model is loaded, and a record is on disk before it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import chain
from typing import TYPE_CHECKING

from mvw_cli import console
from mvw_cli.batch.source.listing import list_items
from mvw_cli.batch.store.output import Output, plan_output
from mvw_cli.batch.store.tally import Tally
from mvw_cli.cli.batch.executor import job_for, make_executor
from mvw_cli.cli.batch.summary import Summary, summarise
from mvw_cli.cli.batch.task import Begun, Task, check, default_name, refuse_another_table
from mvw_cli.cli.batch.view import BatchView
from mvw_cli.cli.batch.words import again
from mvw_cli.cli.process import (
    ShutdownRequest,
    exit_on_interrupt,
    finish_on_interrupt,
    mute_libraries,
)
from mvw_cli.cli.stderr_view import loading_progress
from mvw_cli.errors import ExitCode, MvwError
from mvw_cli.profiles.store import DEFAULT

if TYPE_CHECKING:
    from mvw_cli.batch.items import Item
    from mvw_cli.batch.workers.worker import Executor
    from mvw_cli.profiles.resolution import Resolved


def run(task: Task) -> int:
    """Do what the command line asks for, and return the exit code.

    Raises:
        MvwError: what stops all items. What stops one is in its record.
    """
    check(task)
    output = plan_output(task.output, default_name(task))
    if output.table is not None:
        from mvw_cli.batch.store.export import check_table

        check_table(output.table, "mvw batch --help")
        refuse_another_table(task, output)
    view = BatchView()
    with ExitStack() as held:
        with exit_on_interrupt(view.on_interrupt), view.making_room():
            begun = _prepare(task, output, view, held)
        if task.dry_run:
            from mvw_cli.cli.batch.plan import plan, write

            write(plan(task, begun), as_json=task.as_json)
            return ExitCode.OK
        return _serve(task, begun, view)


def _prepare(task: Task, output: Output, view: BatchView, held: ExitStack) -> Begun:
    view.listing(task.paths[0] if task.paths else task.questions or "")
    # pydantic comes after the first sign of life.
    from mvw_cli.batch.store.fingerprint import Part, fingerprint
    from mvw_cli.batch.store.log import RecordLog
    from mvw_cli.batch.store.worklist import WorkList, pending
    from mvw_cli.profiles.resolution import resolve

    mute_libraries(progress=False)
    resolved = resolve(task.profile, task.flags)
    source = task.source(resolved.profile.prompt.question)
    worklist = WorkList(list_items(source), limit=task.limit, shard=task.shard)
    if output.fetch():
        view.note(f"The records at {output.name} were fetched: {output.log}")
    print_ = fingerprint(resolved, random_weights=task.random_weights)
    log = held.enter_context(
        RecordLog(
            output.log,
            print_,
            part=Part(task.shard, len(worklist)),
            overwrite=task.overwrite,
            retry_failed=task.retry_failed,
            hint_overwrite=again(task.words, "--overwrite"),
        )
    )
    view.leaving(log.leave)
    for line in log.recovered:
        view.warn(line)
    tally = Tally(listed=len(worklist))
    items = pending(
        worklist,
        log,
        threads=task.readers,
        timeout_s=task.read_timeout,
        skipped=tally.skip,
    )
    held.callback(_close, items)
    first = next(items, None)
    view.listed()
    return Begun(
        resolved,
        output,
        worklist,
        log,
        lambda revision: log.settle(print_.with_revision(revision)),
        items,
        first,
        tally,
    )


def _close(items: Iterator[Item]) -> None:
    """Let go of what a generator holds, unless a reader that hangs is still inside."""
    with suppress(ValueError):
        items.close()  # type: ignore[attr-defined]


def _serve(task: Task, begun: Begun, view: BatchView) -> int:
    """Answer what is left, and tell how it went."""
    shutdown = ShutdownRequest()
    stopped: MvwError | None = None
    state = None
    if begun.first is None:
        view.note(_nothing_left(begun))
    else:
        _introduce(task, begun, view)
        executor = make_executor(task, job_for(task, begun.resolved))
        items = chain([begun.first], begun.items)
        with ExitStack() as held:
            with exit_on_interrupt(view.on_interrupt), view.making_room():
                view.loading(_model_name(begun.resolved), _telling(begun.resolved, view))
                _load(executor, view, held)
                begun.settle(executor.revision)
            with finish_on_interrupt(view.on_interrupt) as shutdown:
                try:
                    _record(executor, items, begun, view, shutdown)
                except MvwError as error:
                    stopped = error
                except RuntimeError as error:
                    stopped = _lost(task, begun, error)
            state = executor.state
    begun.log.flush()
    summary = summarise(
        begun.tally,
        state,
        output=begun.output,
        failed_in_log=begun.log.failed,
        interrupted=shutdown.requested,
        words=task.words,
    )
    try:
        begun.output.publish()
    except MvwError as error:
        stopped = stopped or error
    _tell(task, summary, view)
    if stopped is not None:
        raise stopped
    return _exit_code(summary)


def _load(executor: Executor, view: BatchView, held: ExitStack) -> None:
    try:
        held.enter_context(executor)
    finally:
        view.loaded()


def _record(
    executor: Executor,
    items: Iterator[Item],
    begun: Begun,
    view: BatchView,
    shutdown: ShutdownRequest,
) -> None:
    """Bring records to the log as they come."""

    def draining() -> bool:
        return shutdown.requested

    begun.tally.begin()
    with view.following(begun.tally, lambda: executor.state, draining):
        records = executor.records(items, run=begun.log.run, draining=draining)
        for record in records:
            begun.log.append(record)
            begun.tally.add(record)
            view.show(record)


def _introduce(task: Task, begun: Begun, view: BatchView) -> None:
    if begun.resolved.is_default:
        view.note(
            f"No profile or model is named: the embedded `{DEFAULT}` answers, which reads only "
            "scenes of coloured shapes. A real one: --model ORG/NAME or --profile NAME."
        )
    if task.random_weights:
        view.warn("The weights are random: answers are noise. Time and memory are real.")
    if begun.log.done or begun.log.failed:
        view.note(
            f"Going on with {begun.output.log}: {begun.log.done:,} answered, "
            f"{begun.log.failed:,} failed before."
        )


def _nothing_left(begun: Begun) -> str:
    if not begun.tally.listed:
        return "There is nothing to do: no item belongs to this part of the work."
    return f"There is nothing left to do: each of {begun.tally.listed:,} items has its record."


def _model_name(resolved: Resolved) -> str:
    return resolved.profile.model or resolved.name or resolved.profile.adapter


def _telling(resolved: Resolved, view: BatchView) -> Callable[[], str] | None:
    model = resolved.profile.model
    if not view.live or model is None:
        return None
    return loading_progress(model, resolved.profile.revision)


def _tell(task: Task, summary: Summary, view: BatchView) -> None:
    view.summary(summary)
    if task.as_json:
        console.write_json(summary.to_dict())


def _lost(task: Task, begun: Begun, error: RuntimeError) -> MvwError:
    """Say that the accelerator serves this process no more; other errors are raised again."""
    from mvw_cli.engine.memory import lost_device

    if not lost_device(error):
        raise error
    said = next(iter(str(error).splitlines()), "it gives no reason")
    return MvwError(
        "The accelerator has failed, and this process can't use it any more",
        cause=f"{said}; {begun.tally.served:,} records were written, none is lost",
        hint=again(task.words),
    )


def _exit_code(summary: Summary) -> int:
    if summary.interrupted and summary.remaining:
        return ExitCode.INTERRUPTED
    return ExitCode.ITEMS_FAILED if summary.failed_in_log else ExitCode.OK
