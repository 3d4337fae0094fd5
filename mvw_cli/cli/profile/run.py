"""One `mvw profile` from the command line to its report.

What has been measured is never thrown away: an interrupt or a cell that fails leaves a report of
the others.
"""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from threading import Event

from mvw_cli.adapter import Adapter, ModelSpec
from mvw_cli.batch.source.paths import Source
from mvw_cli.batch.store.fingerprint import files_of
from mvw_cli.bench.bounds import measured_case, plan_for, planned_case, with_bounds
from mvw_cli.bench.documents import (
    BASELINE,
    Answers,
    AttentionMass,
    Cell,
    Model,
    ProfileReport,
    Workload,
    read_report,
    showing,
)
from mvw_cli.bench.measure.arms import ArmSpec, Job, choose_arms
from mvw_cli.bench.measure.items import (
    QUESTION,
    Items,
    ask,
    generated_items,
    own_files,
    own_items,
)
from mvw_cli.bench.verdict.verdict import verdicts
from mvw_cli.cli.process import exit_on_interrupt, finish_on_interrupt, mute_libraries
from mvw_cli.cli.profile.output import (
    Outputs,
    check_no_input,
    check_outputs,
    deliver_plan,
    deliver_report,
)
from mvw_cli.cli.show_cost import image_size
from mvw_cli.cli.stderr_view import StderrView
from mvw_cli.cost.case import Case
from mvw_cli.cost.gpus import named_gpu
from mvw_cli.environment import describe_environment
from mvw_cli.errors import ExitCode, MvwError, PluginProblem, UsageProblem
from mvw_cli.plugins import load_adapter
from mvw_cli.profiles.resolution import Resolved, resolve
from mvw_cli.profiles.schema import Profile
from mvw_cli.session import Session, open_session
from mvw_cli.text import check_paths


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
    answers: bool | None
    attention_mass: bool | None
    plan: bool
    gpu: str | None
    image_size: str
    allow_pickle: bool
    random_weights: bool
    source: str | None
    outputs: Outputs


@dataclass(slots=True)
class _Run:
    """What is known before a model is loaded, who watches, and what has been found so far."""

    task: Task
    view: StderrView
    resolved: Resolved
    adapter: Adapter
    items: Items
    job: Job
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    clock: float = field(default_factory=time.perf_counter)
    model: Model | None = None
    workload: Workload | None = None
    cells: list[Cell] = field(default_factory=list)
    answers: Answers | None = None
    attention: AttentionMass | None = None
    failed: list[Exception] = field(default_factory=list)
    """What ended cells early."""


def run(task: Task) -> int:
    """Measure, or render what was measured, and return the exit code.

    Raises:
        MvwError: nothing could be measured; or something failed after a report was delivered.
    """
    _check(task)
    check_outputs(task.outputs)
    if task.source is not None:
        check_no_input(task.outputs, [task.source])
        with showing(task.source):
            deliver_report(read_report(task.source), task.outputs)
        return ExitCode.OK
    view = StderrView(ticking=False)
    with tempfile.TemporaryDirectory(prefix="mvw-profile-") as scratch:
        with exit_on_interrupt(view.on_interrupt), view.making_room():
            run = _prepare(task, Path(scratch), view)
        if not task.plan:
            return _measure(run)
        plan = plan_for(_case(run), task.batches, run.job.arms)
        view.clear()
        profile = run.resolved.profile
        deliver_plan(plan, profile.model or profile.adapter, task.outputs)
        return ExitCode.OK


def _check(task: Task) -> None:
    """Refuse what contradicts itself.

    Raises:
        UsageProblem: it does.
    """
    help_, image = "mvw profile --help", task.image
    check_paths((image, task.folder, task.questions))
    others = {"--images": task.folder, "--questions": task.questions}
    other = next((name for name, value in others.items() if value is not None), None)
    if image is not None and other is not None:
        message, cause = f"IMAGE and {other} contradict each other", "images come from one place"
        raise UsageProblem(message, cause=cause, hint=help_)
    if image is not None and task.question is None and not os.path.exists(image):
        hint = f"ls {shlex.quote(os.path.dirname(image) or '.')}"
        raise UsageProblem(f"There is no image {image}", cause="no such file", hint=hint)
    drawn = {"--html": task.outputs.html, "--plot": task.outputs.plot}
    undone = next((name for name, value in drawn.items() if value is not None), None)
    if task.plan and undone is not None:
        raise UsageProblem(
            f"{undone} does not go with --plan",
            cause="a plan is text or JSON; pages and charts are made of what was measured",
            hint="mvw profile --plan",
        )
    if task.gpu is not None and not task.plan:
        raise UsageProblem(
            "--gpu goes with --plan",
            cause="what is measured is measured on the device that is here",
            hint=shlex.join(["mvw", "profile", *task.words, "--plan"]),
        )


def _prepare(task: Task, scratch: Path, view: StderrView) -> _Run:
    view.progress("Preparing …")
    mute_libraries()
    resolved = resolve(task.profile, task.flags)
    profile, seed = resolved.profile, task.flags.get("generation.seed")
    seed = seed if isinstance(seed, int) else 0
    arms = choose_arms(
        task.profile,
        task.flags,
        moments=task.moments or (),
        until=task.until,
        policies=list(dict.fromkeys(one for option in task.policies for one in option)),
    )
    if not task.plan:
        profile = _on_engine(profile, arms, view)
    adapter = load_adapter(profile.adapter)
    question = task.question or profile.prompt.question
    paths = tuple(path for path in (task.image, task.folder) if path is not None)
    if paths or task.questions is not None:
        command = ("mvw", "profile") if task.folder is None else ("mvw", "profile", "--images")
        source = Source(paths, question=question, questions=task.questions, command=command)
        items = own_items(source, task.limit, one=task.image is not None)
        check_no_input(task.outputs, chain(own_files(source), files_of(resolved)))
    else:
        check_no_input(task.outputs, files_of(resolved))
        items = generated_items(
            adapter,
            scratch / "images",
            task.limit,
            size=image_size(task.image_size, ModelSpec(), hint="mvw profile --image-size 1024x768"),
            seed=seed,
            question=question or QUESTION,
        )
    job = Job(
        profile=profile,
        arms=tuple(arms),
        items=items.items,
        mode="natural" if task.natural else "fixed",
        new_tokens=profile.generation.max_new_tokens if task.natural else task.new_tokens,
        runs=task.runs,
        min_time_s=task.min_time,
        warm_up=task.warmup,
        seed=seed,
    )
    return _Run(task, view, resolved, adapter, items, job)


def _on_engine(profile: Profile, arms: Sequence[ArmSpec], view: StderrView) -> Profile:
    """Settle what of the engine's choice is open: one that serves all arms, in full each time.

    Raises:
        UsageProblem: vLLM is asked for, and can't serve an arm.
    """
    if profile.engine == "mvw":
        return profile
    from mvw_cli.vllm import start

    for arm in arms:
        if profile.engine == "vllm":
            start.check(profile, arm.policy)
        elif reason := start.why_not(profile, arm.policy):
            view.note(f"engine mvw: {reason}")
            return profile.model_copy(update={"engine": "mvw"})
    # Turns repeat their images: what a run finds in a cache of the one before, none would pay for.
    uncached = {"enable_prefix_caching": False, "mm_processor_cache_gb": 0}
    given = type(profile.engine_args)(**uncached | profile.engine_args.given)
    return profile.model_copy(update={"engine_args": given})


def _measure(run: _Run) -> int:
    """Measure cell by cell, then the answers, and deliver what there is."""
    task, view = run.task, run.view
    if task.random_weights:
        view.warn(
            "The weights are random: time and memory are real, answers are noise, and questions "
            "are counted roughly where the model's tokenizer can't be had."
        )
    failed: Exception | None = None
    with finish_on_interrupt(view.on_interrupt) as shutdown:
        try:
            _find_out(run, shutdown)
        except Exception as error:  # whatever it is, what was measured before is delivered
            failed = error
    view.clear()
    if not run.cells:
        if failed is not None:
            raise failed
        view.note("Interrupted before anything was measured.")
        return ExitCode.INTERRUPTED
    report = _report(run)
    view.clear()
    deliver_report(report, task.outputs)
    at_fault = next((one for one in run.failed if isinstance(one, PluginProblem)), None)
    if (failed := failed or at_fault) is not None:
        raise failed
    if any(cell.ended for cell in run.cells):
        return ExitCode.FAILURE  # the report says which cell ended early, and why
    if shutdown.is_set():
        view.note("Interrupted: the report holds what was measured until then.")
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def _find_out(run: _Run, shutdown: Event) -> None:
    """Measure all that was asked for, on one loaded model, until the user has had enough.

    Raises:
        MvwError: the model can't be loaded or run.
    """
    task, view = run.task, run.view
    view.stage("Loading the model")
    # vLLM has to know of a tag when it starts: it schedules otherwise then.
    tagged = (arm.policy for arm in run.job.arms if getattr(arm.policy, "until", None))
    session = open_session(
        run.job.profile,
        policy=next(tagged, None),
        allow_pickle=task.allow_pickle,
        random_weights=task.random_weights,
    )
    try:
        _measure_cells(run, session, shutdown)
    finally:
        session.close()


def _measure_cells(run: _Run, session: Session, shutdown: Event) -> None:
    from mvw_cli.bench.measure.cell import device_busy, measure, workload  # imports torch

    task, view = run.task, run.view
    if session.chosen:
        view.note(session.chosen)
    run.model = Model(**session.facts(), random_weights=task.random_weights)
    run.workload = workload(session, run.job, run.items.source)
    for batch in task.batches:
        if shutdown.is_set():
            break
        view.stage(f"Measuring batch {batch}: {', '.join(arm.name for arm in run.job.arms)}")
        job = replace(run.job, batch=batch)
        cell = measure(
            session, job, progress=view.progress, stopping=shutdown.is_set, failed=run.failed.append
        )
        run.cells += [cell] if cell is not None else []
    if not shutdown.is_set():
        _compare(run, session, shutdown)
    for place, cell in enumerate(run.cells):
        if not shutdown.is_set():
            busy = device_busy(session, replace(run.job, batch=cell.batch), cell)
            run.cells[place] = replace(cell, device_busy=busy)


def _compare(run: _Run, session: Session, shutdown: Event) -> None:
    """Find what speed does not tell: what changes in the answers, and where the attention goes."""
    task, view, items = run.task, run.view, run.items.items
    # By default where the outcome means anything.
    sensible = run.items.meaningful and not task.random_weights
    if sensible if task.answers is None else task.answers:
        from mvw_cli.bench.quality.answers import compare_answers  # imports torch

        run.answers = compare_answers(
            session,
            items,
            {arm.name: arm.policy for arm in run.job.arms if arm.name != BASELINE},
            progress=lambda number, doing: view.progress(
                f"Comparing the answers, {doing}, item", number, len(items)
            ),
            stopping=shutdown.is_set,
        )
    wants_attention = sensible if task.attention_mass is None else task.attention_mass
    if wants_attention and not session.engine.in_process:
        view.warn("No attention to the image is shown: vLLM does not give its attention.")
    elif wants_attention and not shutdown.is_set():
        view.stage("Measuring the attention to the image")
        run.attention = _attention(run, session, shutdown)


def _attention(run: _Run, session: Session, shutdown: Event) -> AttentionMass | None:
    from mvw_cli.bench.measure.run import Stopped
    from mvw_cli.bench.quality.attention import attention_mass  # imports torch

    request = ask(session, run.items.items[0], session.settings)

    def tick() -> None:
        if shutdown.is_set():
            raise Stopped

    try:
        return attention_mass(session, request, tick=tick)
    except Stopped:
        return None
    except ValueError as error:  # an item without vision tokens
        run.view.warn(f"No attention to the image is shown: {error}")
        return None


def _case(run: _Run) -> Case:
    """Describe model, workload and device; without a measurement from the first item alone."""
    task, adapter, profile = run.task, run.adapter, run.job.profile
    if run.workload is not None:
        case = measured_case(adapter, profile, run.workload)
    else:
        case = planned_case(adapter, profile, run.items.items[0], task.new_tokens)
    if task.gpu is not None:
        return replace(case, device=named_gpu(task.gpu, case.dtype))
    run.view.stage("Measuring the device's bandwidth and matrix rate")
    from mvw_cli.bench.measure.device_peaks import calibrate  # imports torch

    return replace(case, device=calibrate(profile.device, case.dtype))


def _report(run: _Run) -> ProfileReport:
    assert run.model is not None and run.workload is not None
    plan, cells = None, run.cells
    try:
        case = _case(run)
        plan = plan_for(case, run.task.batches, run.job.arms)
        cells = [with_bounds(cell, case) for cell in cells]
    except MvwError as error:
        run.view.warn(f"No bounds: {error.message}")
    report = ProfileReport(
        environment=describe_environment(run.model.device),
        model=run.model,
        profile=run.resolved.to_dict(),
        workload=run.workload,
        command=["mvw", "profile", *run.task.words],
        started=run.started,
        seconds=time.perf_counter() - run.clock,
        plan=plan,
        cells=cells,
        answers=run.answers,
        attention=run.attention,
    )
    return replace(report, verdicts=verdicts(report))
