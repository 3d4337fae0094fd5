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
from typing import TYPE_CHECKING, Any

from mvw_cli.cli.interrupt import Wish, finishing_first, leaving_at_once
from mvw_cli.cli.libraries import mute_libraries
from mvw_cli.cli.profile_output import check_outputs, deliver_report
from mvw_cli.cli.profile_view import ProfileView
from mvw_cli.errors import ExitCode, MvwError, UsageProblem

if TYPE_CHECKING:
    from mvw_cli.adapter import Adapter
    from mvw_cli.profiles import Resolved
    from mvw_cli.profiling.arms import NamedArm
    from mvw_cli.profiling.case import Case
    from mvw_cli.profiling.items import Items
    from mvw_cli.profiling.job import Job
    from mvw_cli.profiling.measure import Measured
    from mvw_cli.profiling.report import Answers, AttentionMass, Cell, Plan, Report, Workload
    from mvw_cli.session import Session


CHARACTERS_PER_TOKEN = 4
"""Of a question: a rule of thumb for English, where nothing has been run."""


@dataclass(frozen=True, slots=True)
class Task:
    """What the command line asks for."""

    words: tuple[str, ...]
    image: str | None
    question: str | None
    moments: tuple[int | str, ...] | None
    until: tuple[str, ...]
    policies: tuple[str, ...] | None
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
    suggest: str | None
    tolerance: float
    plan: bool
    gpu: str | None
    image_size: str
    allow_pickle: bool
    random_weights: bool
    plot: str | None
    html: str | None
    output: str | None
    source: str | None
    as_json: bool


def run(task: Task) -> int:
    """Measure, or render what was measured, and return the exit code.

    Raises:
        MvwError: nothing could be measured; or something failed after a report was delivered.
    """
    _check(task)
    check_outputs(task.output, task.plot, task.html, task.suggest)
    if task.source is not None:
        from mvw_cli.profiling.report import read_report

        deliver_report(read_report(task.source), task)
        return ExitCode.OK
    view = ProfileView()
    with tempfile.TemporaryDirectory(prefix="mvw-profile-") as scratch:
        with leaving_at_once(view.last_words):
            begun = _prepare(task, Path(scratch), view)
        if task.plan:
            from mvw_cli.cli.profile_plan import deliver_plan

            case = _bounded_case(task, begun, view, None)
            deliver_plan(
                _plan(task, begun, case),
                begun.resolved.profile.model or begun.resolved.profile.adapter,
                as_json=task.as_json,
                output=task.output,
            )
            return ExitCode.OK
        return _measure(task, begun, view)


@dataclass(frozen=True, slots=True)
class _Begun:
    """What is known before a model is loaded."""

    resolved: Resolved
    adapter: Adapter
    arms: list[NamedArm]
    items: Items
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    clock: float = field(default_factory=time.perf_counter)


def _prepare(task: Task, scratch: Path, view: ProfileView) -> _Begun:
    view.progress("Preparing …")
    from mvw_cli.cli.show_cost import image_size
    from mvw_cli.plugins import load_adapter
    from mvw_cli.profiles import resolve
    from mvw_cli.profiling.arms import choose_arms
    from mvw_cli.profiling.items import QUESTION, generated_items, own_items

    mute_libraries(progress=False)
    resolved = resolve(task.profile, task.flags)
    arms = choose_arms(
        task.profile,
        task.flags,
        moments=task.moments or (),
        until=task.until,
        policies=task.policies or (),
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
    return _Begun(resolved, adapter, arms, items)


def _source(task: Task, question: str | None) -> Any:
    from mvw_cli.batch.sources import Source

    paths = [path for path in (task.image, task.folder) if path is not None]
    return Source(tuple(paths), question=question, questions=task.questions)


def _seed(task: Task) -> int:
    seed = task.flags.get("generation.seed")
    return seed if isinstance(seed, int) else 0


def _measure(task: Task, begun: _Begun, view: ProfileView) -> int:
    """Measure cell by cell, then the answers, and deliver what there is."""
    found: list[Measured] = []
    failed: MvwError | None = None
    answers: Answers | None = None
    attention: AttentionMass | None = None
    with finishing_first(view.last_words) as wish:
        try:
            for batch in task.batches:
                if wish.to_finish:
                    break
                found.append(_cell(task, begun, batch, view, wish))
            if not wish.to_finish and _wants_session(task, begun):
                answers, attention = _look_closer(task, begun, view, wish)
        except MvwError as error:
            failed = error
    view.done()
    if not any(one.cell for one in found):
        if failed is not None:
            raise failed
        view.note("Interrupted before anything was measured.")
        return ExitCode.INTERRUPTED
    report = _report(task, begun, found, answers, attention, view)
    deliver_report(report, task)
    if failed is not None:
        raise failed
    if wish.to_finish:
        view.note("Interrupted: the report holds what was measured until then.")
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def _cell(task: Task, begun: _Begun, batch: int, view: ProfileView, wish: Wish) -> Measured:
    from mvw_cli.profiling.measure import measure
    from mvw_cli.profiling.process import measure_apart

    job = _job(task, begun, batch)
    view.stage(f"Measuring batch {batch}: {', '.join(arm.name for arm in begun.arms)}")
    how = measure if task.in_process else measure_apart
    return how(job, progress=view.progress, stopping=lambda: wish.to_finish)


def _job(task: Task, begun: _Begun, batch: int) -> Job:
    from mvw_cli.profiling.job import ArmSpec, Job

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


def _wants_session(task: Task, begun: _Begun) -> bool:
    return _wants_answers(task, begun) or _wants_attention(task, begun)


def _wants_answers(task: Task, begun: _Begun) -> bool:
    if task.suggest is not None:
        return True
    sensible = begun.items.meaningful and not task.random_weights
    return sensible if task.answers is None else task.answers


def _wants_attention(task: Task, begun: _Begun) -> bool:
    sensible = begun.items.meaningful and not task.random_weights
    return sensible if task.attention_mass is None else task.attention_mass


def _look_closer(
    task: Task, begun: _Begun, view: ProfileView, wish: Wish
) -> tuple[Answers | None, AttentionMass | None]:
    """Load the model here, and ask what changes in the answers and where the attention goes."""
    from mvw_cli.profiles import withdrawal_policy
    from mvw_cli.profiling.answers import compare_answers
    from mvw_cli.profiling.attention import attention_mass
    from mvw_cli.profiling.report import BASELINE

    view.stage("Loading the model to compare the answers")
    session = _session(task, begun)
    answers = attention = None
    items = begun.items.items
    if _wants_answers(task, begun):
        answers = compare_answers(
            session,
            items,
            {
                arm.name: withdrawal_policy(arm.profile)
                for arm in begun.arms
                if arm.name != BASELINE
            },
            progress=lambda number, doing: view.progress(
                f"Comparing the answers, {doing}, item", number, len(items)
            ),
            stopping=lambda: wish.to_finish,
        )
    if _wants_attention(task, begun) and not wish.to_finish:
        view.stage("Measuring the attention to the image")
        attention = attention_mass(session, items[0])
    return answers, attention


def _session(task: Task, begun: _Begun) -> Session:
    from mvw_cli.session import open_session

    return open_session(
        begun.resolved.profile,
        allow_pickle=task.allow_pickle,
        random_weights=task.random_weights,
    )


def _bounded_case(task: Task, begun: _Begun, view: ProfileView, found: Workload | None) -> Case:
    """Describe model, workload and device for the bounds.

    Args:
        found: what was measured; without it the workload is counted from the first image.
    """
    from mvw_cli.profiling.calibration import calibrate
    from mvw_cli.profiling.gpus import named_gpu

    case = _case(task, begun) if found is None else _measured_case(begun, found)
    if task.gpu is not None:
        return replace(case, device=named_gpu(task.gpu, case.dtype))
    view.stage("Measuring the device's bandwidth and matrix rate")
    device = calibrate(begun.resolved.profile.device, case.dtype)
    view.done()
    return replace(case, device=device)


def _plan(task: Task, begun: _Begun, case: Case) -> Plan:
    from mvw_cli.profiling.bound import make_plan

    return make_plan(case, task.batches, _usual_moment(begun))


def _case(task: Task, begun: _Begun) -> Case:
    """Count from the configuration and the first image alone."""
    from mvw_cli.engine.images import open_image
    from mvw_cli.profiles import model_spec

    profile = begun.resolved.profile
    config = begun.adapter.shape(model_spec(profile))
    first = begun.items.items[0]
    sizes = [open_image(path, max_pixels=profile.images.max_pixels).size for path in first.images]
    return _case_of(
        begun,
        config,
        question_tokens=max(1, len(first.question) // CHARACTERS_PER_TOKEN),
        vision_tokens=sum(begun.adapter.image_tokens(config, *size) for size in sizes),
        new_tokens=task.new_tokens,
    )


def _measured_case(begun: _Begun, found: Workload) -> Case:
    """Take the tokens that were really there."""
    from mvw_cli.profiles import model_spec

    config = begun.adapter.shape(model_spec(begun.resolved.profile))
    case = _case_of(
        begun,
        config,
        question_tokens=found.prompt_tokens,
        vision_tokens=found.vision_tokens,
        new_tokens=found.new_tokens,
    )
    beside = any(layer.cross for layer in case.shape.layers)
    inside = 0 if beside else found.vision_tokens
    return replace(case, question_tokens=max(1, found.prompt_tokens - inside))


def _case_of(
    begun: _Begun, config: Any, *, question_tokens: int, vision_tokens: int, new_tokens: int
) -> Case:
    from mvw_cli.profiling.case import Case
    from mvw_cli.profiling.flops import flops_of

    profile = begun.resolved.profile
    flops = flops_of(begun.adapter, config)
    return Case(
        flops=flops,
        dtype=flops.shape.dtype if profile.dtype == "auto" else profile.dtype,
        keep_mlp=profile.cross_attention == "mlp",
        bits=_bits(begun),
        question_tokens=question_tokens,
        vision_tokens=vision_tokens,
        new_tokens=new_tokens,
    )


def _usual_moment(begun: _Begun) -> int:
    """Say after how many tokens the first arm withdraws, or what is usual where it can't tell."""
    from mvw_cli.profiling.arms import USUAL_M

    for arm in begun.arms[1:]:
        m = (arm.profile.withdrawal.model_extra or {}).get("m")
        if isinstance(m, int):
            return m
    return USUAL_M


def _bits(begun: _Begun) -> int | None:
    from mvw_cli.cost import BITS

    return BITS[begun.resolved.profile.quantization]


def _report(
    task: Task,
    begun: _Begun,
    found: Sequence[Measured],
    answers: Answers | None,
    attention: AttentionMass | None,
    view: ProfileView,
) -> Report:
    from mvw_cli.profiling.report import Report
    from mvw_cli.profiling.suggest import with_suggestion
    from mvw_cli.profiling.verdict import verdicts

    first = found[0]
    plan, cells = None, [one.cell for one in found if one.cell is not None]
    try:
        case = _bounded_case(task, begun, view, first.workload)
        plan = _plan(task, begun, case)
        cells = [_with_bounds(cell, case) for cell in cells]
    except MvwError as error:
        view.warn(f"No bounds: {error.message}")
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
        attention=attention,
    )
    return replace(report, verdicts=verdicts(report))


def _with_bounds(cell: Cell, case: Case) -> Cell:
    from mvw_cli.profiling.bound import arm_bound

    arms = [
        replace(arm, bound=arm_bound(case, cell.batch, arm.withdrawn_after)) for arm in cell.arms
    ]
    return replace(cell, arms=arms)


def _check(task: Task) -> None:
    """Refuse what contradicts itself."""
    given = [
        name
        for name, value in (
            ("IMAGE", task.image),
            ("--images", task.folder),
            ("--questions", task.questions),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise UsageProblem(
            f"{' and '.join(given)} contradict each other",
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
    if task.suggest is not None and (task.random_weights or task.answers is False):
        raise UsageProblem(
            "--suggest needs answers",
            cause="with random weights there are none"
            if task.random_weights
            else "--no-answers leaves them out",
            hint="mvw profile --help",
        )
