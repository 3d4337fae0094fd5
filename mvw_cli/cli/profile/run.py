"""One `mvw profile` from the command line to its report.

Puts the parts together: images and arms to jobs, jobs to cells, cells to a report, the report to
wherever it goes. What has been measured is never thrown away: an interrupt or a cell that fails
leaves a report of the others.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mvw_cli.cli.process import (
    ShutdownRequest,
    exit_on_interrupt,
    finish_on_interrupt,
    mute_libraries,
)
from mvw_cli.cli.profile.bounds import bounded_case, plan_for, with_bounds
from mvw_cli.cli.profile.closer import Closer, look_closer
from mvw_cli.cli.profile.output import check_outputs, deliver_report
from mvw_cli.cli.profile.task import Begun, Task, check
from mvw_cli.cli.profile.view import ProfileView
from mvw_cli.errors import ExitCode, MvwError

if TYPE_CHECKING:
    from mvw_cli.batch.source.spec import Source
    from mvw_cli.bench.documents import Report
    from mvw_cli.bench.measure.job import Job
    from mvw_cli.bench.measure.measure import Measured


def run(task: Task) -> int:
    """Measure, or render what was measured, and return the exit code.

    Raises:
        MvwError: nothing could be measured; or something failed after a report was delivered.
    """
    check(task)
    check_outputs(task.output, task.plot, task.html, task.suggest)
    if task.source is not None:
        from mvw_cli.bench.documents import read_report

        deliver_report(read_report(task.source), task)
        return ExitCode.OK
    view = ProfileView()
    with tempfile.TemporaryDirectory(prefix="mvw-profile-") as scratch:
        with exit_on_interrupt(view.on_interrupt):
            begun = _prepare(task, Path(scratch), view)
        if task.plan:
            from mvw_cli.cli.profile.plan import deliver_plan

            case = bounded_case(task, begun, view.stage, None)
            deliver_plan(
                plan_for(task, begun, case),
                begun.resolved.profile.model or begun.resolved.profile.adapter,
                as_json=task.as_json,
                output=task.output,
            )
            return ExitCode.OK
        return _measure(task, begun, view)


def _prepare(task: Task, scratch: Path, view: ProfileView) -> Begun:
    view.progress("Preparing …")
    from mvw_cli.bench.measure.arms import choose_arms
    from mvw_cli.bench.measure.items import QUESTION, generated_items, own_items
    from mvw_cli.cli.show_cost import image_size
    from mvw_cli.plugins.lookup import load_adapter
    from mvw_cli.profiles.resolution import resolve

    mute_libraries(progress=False)
    resolved = resolve(task.profile, task.flags)
    arms = choose_arms(
        task.profile,
        task.flags,
        moments=task.moments or (),
        until=task.until,
        policies=list(dict.fromkeys(one for option in task.policies for one in option)),
    )
    adapter = load_adapter(resolved.profile.adapter)
    question = task.question or resolved.profile.prompt.question
    if task.image is None and task.folder is None and task.questions is None:
        items = generated_items(
            adapter,
            scratch / "images",
            task.limit,
            size=image_size(task.image_size, None),
            seed=_seed(task),
            question=question or QUESTION,
        )
    else:
        items = own_items(_source(task, question), task.limit, one=task.image is not None)
    return Begun(resolved, adapter, arms, items)


def _source(task: Task, question: str | None) -> Source:
    from mvw_cli.batch.source.spec import Source

    paths = [path for path in (task.image, task.folder) if path is not None]
    command = ("mvw", "profile") if task.folder is None else ("mvw", "profile", "--images")
    return Source(tuple(paths), question=question, questions=task.questions, command=command)


def _seed(task: Task) -> int:
    seed = task.flags.get("generation.seed")
    return seed if isinstance(seed, int) else 0


def _measure(task: Task, begun: Begun, view: ProfileView) -> int:
    """Measure cell by cell, then the answers, and deliver what there is."""
    if task.random_weights:
        view.warn(
            "The weights are random: time and memory are real, answers are noise, and questions "
            "are counted roughly where the model's tokenizer can't be had."
        )
    found: list[Measured] = []
    closer = Closer()
    failed: Exception | None = None
    with finish_on_interrupt(view.on_interrupt) as shutdown:
        try:
            for batch in task.batches:
                if shutdown.requested:
                    break
                found.append(_cell(task, begun, batch, view, shutdown))
            if not shutdown.requested:
                look_closer(task, begun, view, shutdown, closer)
        except Exception as error:  # whatever it is, what was measured before is delivered
            failed = error
    view.done()
    if not any(one.cell for one in found):
        if failed is not None:
            raise failed
        view.note("Interrupted before anything was measured.")
        return ExitCode.INTERRUPTED
    report = _report(task, begun, found, closer, view)
    deliver_report(report, task)
    if failed is not None:
        raise failed
    if any(one.ended for one in found):
        return ExitCode.FAILURE  # the report says which cell ended early, and why
    if shutdown.requested:
        view.note("Interrupted: the report holds what was measured until then.")
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def _cell(
    task: Task, begun: Begun, batch: int, view: ProfileView, shutdown: ShutdownRequest
) -> Measured:
    from mvw_cli.bench.measure.measure import measure
    from mvw_cli.bench.measure.process import measure_apart

    job = _job(task, begun, batch)
    view.stage(f"Measuring batch {batch}: {', '.join(arm.name for arm in begun.arms)}")
    how = measure if task.in_process else measure_apart
    return how(job, progress=view.progress, stopping=lambda: shutdown.requested)


def _job(task: Task, begun: Begun, batch: int) -> Job:
    from mvw_cli.bench.measure.job import ArmSpec, Job

    generation = begun.resolved.profile.generation
    return Job(
        profile=begun.resolved.profile.model_dump(exclude={"extends"}),
        arms=tuple(ArmSpec(arm.name, arm.profile.withdrawal.model_dump()) for arm in begun.arms),
        items=begun.items.items,
        source=begun.items.source,
        batch=batch,
        mode="natural" if task.natural else "fixed",
        new_tokens=generation.max_new_tokens if task.natural else task.new_tokens,
        runs=task.runs,
        min_time_s=task.min_time,
        warm_up=task.warmup,
        seed=_seed(task),
        random_weights=task.random_weights,
        allow_pickle=task.allow_pickle,
    )


def _report(
    task: Task,
    begun: Begun,
    found: Sequence[Measured],
    closer: Closer,
    view: ProfileView,
) -> Report:
    from mvw_cli.bench.documents import Report
    from mvw_cli.bench.verdict.suggest import with_suggestion
    from mvw_cli.bench.verdict.verdict import verdicts

    first = found[0]
    plan, cells = None, [one.cell for one in found if one.cell is not None]
    try:
        case = bounded_case(task, begun, view.stage, first.workload)
        plan = plan_for(task, begun, case)
        cells = [with_bounds(cell, case) for cell in cells]
    except MvwError as error:
        view.warn(f"No bounds: {error.message}")
    answers = closer.answers
    if answers is not None and task.suggest is not None:
        answers = with_suggestion(answers, task.tolerance)
    report = Report(
        environment=first.environment,
        model=first.model,
        profile=begun.resolved.to_dict(),
        workload=first.workload,
        command=["mvw", "profile", *task.words],
        started=begun.started,
        seconds=time.perf_counter() - begun.clock,
        plan=plan,
        cells=cells,
        profiler_cost=first.profiler_cost,
        answers=answers,
        attention=closer.attention,
    )
    return replace(report, verdicts=verdicts(report))
