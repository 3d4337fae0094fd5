"""One `mvw profile` from the command line to its report.

Puts the parts together: images and arms to jobs, jobs to cells, cells to a report, the report to
wherever it goes. What has been measured is never thrown away: an interrupt or a cell that fails
leaves a report of the others.
"""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mvw_cli.adapter import Adapter
from mvw_cli.batch.source.paths import Source
from mvw_cli.bench.bounds import measured_case, plan_for, planned_case, with_bounds
from mvw_cli.bench.documents import (
    BASELINE,
    Answers,
    AttentionMass,
    ProfileReport,
    Workload,
    read_report,
)
from mvw_cli.bench.measure.arms import ArmSpec, Job, choose_arms
from mvw_cli.bench.measure.items import QUESTION, Items, ask, generated_items, own_items
from mvw_cli.bench.verdict.suggest import with_suggestion
from mvw_cli.bench.verdict.verdict import verdicts
from mvw_cli.cli.process import (
    ShutdownRequest,
    exit_on_interrupt,
    finish_on_interrupt,
    mute_libraries,
)
from mvw_cli.cli.profile.output import Outputs, check_outputs, deliver_plan, deliver_report
from mvw_cli.cli.show_cost import image_size
from mvw_cli.cli.stderr_view import ProgressView
from mvw_cli.cost.case import Case
from mvw_cli.cost.gpus import named_gpu
from mvw_cli.errors import ExitCode, MvwError, UsageProblem
from mvw_cli.plugins import load_adapter
from mvw_cli.profiles.resolution import Resolved, resolve
from mvw_cli.session import Session, open_session

if TYPE_CHECKING:
    from mvw_cli.bench.measure.cell import Measured


@dataclass(frozen=True, slots=True)
class Task:
    """What the command line asks for."""

    words: tuple[str, ...]
    image: str | None
    question: str | None
    moments: tuple[int | str, ...] | None
    until: tuple[str, ...]
    policies: tuple[tuple[str, ...], ...]
    """Compositions, by option."""
    profile: str | None
    flags: Mapping[str, object]
    folder: str | None
    questions: str | None
    limit: int
    batches: tuple[int, ...]
    new_tokens: int
    natural: bool
    runs: int
    min_time: float
    warmup: int
    in_process: bool
    answers: bool | None
    attention_mass: bool | None
    tolerance: float
    plan: bool
    gpu: str | None
    image_size: str
    allow_pickle: bool
    random_weights: bool
    source: str | None
    outputs: Outputs

    @property
    def seed(self) -> int:
        """Of the generation, and of generated images."""
        seed = self.flags.get("generation.seed")
        return seed if isinstance(seed, int) else 0


@dataclass(slots=True)
class _Context:
    """One run: what is known before a model is loaded, and who watches."""

    task: Task
    view: ProgressView
    resolved: Resolved
    adapter: Adapter
    arms: list[ArmSpec]
    items: Items
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    clock: float = field(default_factory=time.perf_counter)


def run(task: Task) -> int:
    """Measure, or render what was measured, and return the exit code.

    Raises:
        MvwError: nothing could be measured; or something failed after a report was delivered.
    """
    _check(task)
    check_outputs(task.outputs)
    if task.source is not None:
        deliver_report(read_report(task.source), task.outputs)
        return ExitCode.OK
    view = ProgressView()
    with tempfile.TemporaryDirectory(prefix="mvw-profile-") as scratch:
        with exit_on_interrupt(view.on_interrupt):
            context = _prepare(task, Path(scratch), view)
        if not task.plan:
            return _measure(context)
        plan = plan_for(_case(context, None), task.batches, context.arms)
        view.done()
        profile = context.resolved.profile
        deliver_plan(plan, profile.model or profile.adapter, task.outputs)
        return ExitCode.OK


def _check(task: Task) -> None:
    """Refuse what contradicts itself.

    Raises:
        UsageProblem: it does.
    """
    others = [name for name, value in (("--images", task.folder), ("--questions", task.questions))
              if value is not None]  # fmt: skip
    if task.image is not None and others:
        raise UsageProblem(
            f"IMAGE and {others[0]} contradict each other",
            cause="images come from one place",
            hint="mvw profile --help",
        )
    if task.image is not None and task.question is None and not os.path.exists(task.image):
        raise UsageProblem(
            f"There is no image {task.image}",
            cause="no such file",
            hint=f"ls {shlex.quote(os.path.dirname(task.image) or '.')}",
        )
    if task.gpu is not None and not task.plan:
        raise UsageProblem(
            "--gpu goes with --plan",
            cause="what is measured is measured on the device that is here",
            hint=shlex.join(["mvw", "profile", *task.words, "--plan"]),
        )
    if task.outputs.suggest is not None and (task.random_weights or task.answers is False):
        raise UsageProblem(
            "--suggest needs answers",
            cause="with random weights there are none"
            if task.random_weights
            else "--no-answers leaves them out",
            hint="mvw profile --help",
        )


def _prepare(task: Task, scratch: Path, view: ProgressView) -> _Context:
    view.progress("Preparing …")
    mute_libraries()
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
    paths = tuple(path for path in (task.image, task.folder) if path is not None)
    if paths or task.questions is not None:
        command = ("mvw", "profile") if task.folder is None else ("mvw", "profile", "--images")
        source = Source(paths, question=question, questions=task.questions, command=command)
        items = own_items(source, task.limit, one=task.image is not None)
    else:
        items = generated_items(
            adapter,
            scratch / "images",
            task.limit,
            size=image_size(task.image_size, None, hint="mvw profile --image-size 1024x768"),
            seed=task.seed,
            question=question or QUESTION,
        )
    return _Context(task, view, resolved, adapter, arms, items)


def _measure(context: _Context) -> int:
    """Measure cell by cell, then the answers, and deliver what there is."""
    task, view = context.task, context.view
    if task.random_weights:
        view.warn(
            "The weights are random: time and memory are real, answers are noise, and questions "
            "are counted roughly where the model's tokenizer can't be had."
        )
    found: list[Measured] = []
    quality = _Quality()
    failed: Exception | None = None
    with finish_on_interrupt(view.on_interrupt) as shutdown:
        try:
            for batch in task.batches:
                if shutdown.requested:
                    break
                found.append(_cell(context, batch, shutdown))
            if not shutdown.requested:
                _compare(context, shutdown, quality)
        except Exception as error:  # whatever it is, what was measured before is delivered
            failed = error
    view.done()
    if not any(one.cell for one in found):
        if failed is not None:
            raise failed
        view.note("Interrupted before anything was measured.")
        return ExitCode.INTERRUPTED
    report = _report(context, found, quality)
    view.done()
    deliver_report(report, task.outputs)
    if failed is not None:
        raise failed
    if any(one.ended for one in found):
        return ExitCode.FAILURE  # the report says which cell ended early, and why
    if shutdown.requested:
        view.note("Interrupted: the report holds what was measured until then.")
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def _cell(context: _Context, batch: int, shutdown: ShutdownRequest) -> Measured:
    from mvw_cli.bench.measure.cell import measure  # imports torch
    from mvw_cli.bench.measure.process import measure_apart

    task, arms = context.task, context.arms
    generation = context.resolved.profile.generation
    job = Job(
        profile=context.resolved.profile,
        arms=tuple(arms),
        items=context.items.items,
        source=context.items.source,
        batch=batch,
        mode="natural" if task.natural else "fixed",
        new_tokens=generation.max_new_tokens if task.natural else task.new_tokens,
        runs=task.runs,
        min_time_s=task.min_time,
        warm_up=task.warmup,
        seed=task.seed,
        random_weights=task.random_weights,
        allow_pickle=task.allow_pickle,
    )
    context.view.stage(f"Measuring batch {batch}: {', '.join(arm.name for arm in arms)}")
    how = measure if task.in_process else measure_apart
    return how(job, progress=context.view.progress, stopping=lambda: shutdown.requested)


# What speed does not tell: what changes in the answers, and where the attention goes.


@dataclass(slots=True)
class _Quality:
    answers: Answers | None = None
    attention: AttentionMass | None = None


class _Stopped(Exception):
    """The user has had enough."""


def _compare(context: _Context, shutdown: ShutdownRequest, found: _Quality) -> None:
    """Load the model here, and fill in what is wanted, as it is found.

    Raises:
        MvwError: the model can't be loaded or run.
    """
    task, view, items = context.task, context.view, context.items.items
    # By default where the outcome means anything.
    sensible = context.items.meaningful and not task.random_weights
    wants_answers = sensible if task.answers is None else task.answers
    wants_attention = sensible if task.attention_mass is None else task.attention_mass
    wants_answers = wants_answers or task.outputs.suggest is not None
    if not (wants_answers or wants_attention):
        return
    from mvw_cli.bench.quality.answers import compare_answers  # imports torch

    view.stage("Loading the model to compare the answers")
    session = open_session(
        context.resolved.profile,
        allow_pickle=task.allow_pickle,
        random_weights=task.random_weights,
    )
    if wants_answers:
        arms = [arm for arm in context.arms if arm.name != BASELINE]
        found.answers = compare_answers(
            session,
            items,
            {arm.name: arm.policy for arm in arms},
            progress=lambda number, doing: view.progress(
                f"Comparing the answers, {doing}, item", number, len(items)
            ),
            stopping=lambda: shutdown.requested,
        )
    if wants_attention and not shutdown.requested:
        view.stage("Measuring the attention to the image")
        found.attention = _attention(context, session, shutdown)


def _attention(
    context: _Context, session: Session, shutdown: ShutdownRequest
) -> AttentionMass | None:
    from mvw_cli.bench.quality.attention import attention_mass  # imports torch

    request = ask(session, context.items.items[0], session.settings)

    def tick() -> None:
        if shutdown.requested:
            raise _Stopped

    try:
        return attention_mass(session, request, tick=tick)
    except _Stopped:
        return None
    except ValueError as error:  # an item without vision tokens
        context.view.warn(f"No attention to the image is shown: {error}")
        return None


# The report.


def _case(context: _Context, found: Workload | None) -> Case:
    """Describe model, workload and device; without a measurement from the first item alone."""
    task, adapter, profile = context.task, context.adapter, context.resolved.profile
    if found is None:
        case = planned_case(adapter, profile, context.items.items[0], task.new_tokens)
    else:
        case = measured_case(adapter, profile, found)
    if task.gpu is not None:
        return replace(case, device=named_gpu(task.gpu, case.dtype))
    context.view.stage("Measuring the device's bandwidth and matrix rate")
    from mvw_cli.bench.measure.device_peaks import calibrate  # imports torch

    return replace(case, device=calibrate(profile.device, case.dtype))


def _report(context: _Context, found: Sequence[Measured], quality: _Quality) -> ProfileReport:
    task, first = context.task, found[0]
    plan, cells = None, [one.cell for one in found if one.cell is not None]
    try:
        case = _case(context, first.workload)
        plan = plan_for(case, task.batches, context.arms)
        cells = [with_bounds(cell, case) for cell in cells]
    except MvwError as error:
        context.view.warn(f"No bounds: {error.message}")
    answers = quality.answers
    if answers is not None and task.outputs.suggest is not None:
        answers = with_suggestion(answers, task.tolerance)
    report = ProfileReport(
        environment=first.environment,
        model=first.model,
        profile=context.resolved.to_dict(),
        workload=first.workload,
        command=["mvw", "profile", *task.words],
        started=context.started,
        seconds=time.perf_counter() - context.clock,
        plan=plan,
        cells=cells,
        profiler_cost=first.profiler_cost,
        answers=answers,
        attention=quality.attention,
    )
    return replace(report, verdicts=verdicts(report))
