"""All arms at one batch size.

First the warm-up, of which nothing counts; then one run of each arm that is watched for memory and
not timed; then the turns that count. In each turn every arm runs once, one after the other, on the
same items. Another arm begins each turn (A B C, B C A, C A B), so that none owes anything to its
place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from mvw_cli.bench.documents import BASELINE, Cell, ItemSource, Memory, Stage, Workload
from mvw_cli.bench.measure import device, events, figures
from mvw_cli.bench.measure.arms import Job
from mvw_cli.bench.measure.items import read_images
from mvw_cli.bench.measure.run import Run, Runner, Stopped
from mvw_cli.cost.shape import Shape, shape_of
from mvw_cli.engine.memory import relieve
from mvw_cli.engine.types import Prefilled
from mvw_cli.errors import ModelProblem, OutOfMemory
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.session import Session
from mvw_cli.text import error_line

if TYPE_CHECKING:
    from mvw_cli.session import Slots

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many runs are done, and how many there will be at least."""


def measure(
    session: Session,
    job: Job,
    *,
    progress: Progress = lambda text, done, total: None,
    stopping: Callable[[], bool] = lambda: False,
    failed: Callable[[Exception], None] = lambda error: None,
) -> Cell | None:
    """Measure a cell.

    Args:
        session: on the job's profile.
        progress: told before each run.
        stopping: asked between steps; what there is by then is returned.
        failed: told what goes wrong after the first turn was whole; the cell tells it, too.

    Returns:
        None where it was stopped before the first turn was whole.

    Raises:
        MvwError: an image can't be read, a policy not be used, or the model not be served exactly;
            it has nothing to decode; there is too little memory.
    """
    policies = {arm.name: arm.policy for arm in job.arms}
    total, done = (job.warm_up + 1 + job.runs) * len(policies), 0

    def tell(text: str) -> None:
        nonlocal done
        progress(text, done, max(total, done + 1))
        done += 1

    runner = Runner(session, job.settings(), stopping)
    memory: dict[str, Memory] = {}
    turns: list[dict[str, Run]] = []
    ended = None
    try:
        for number in range(job.warm_up):
            for name, policy in policies.items():
                tell(f"{name}: warm-up")
                runner.run(job.turn(number), policy)
        shape = _shape(session)
        for name, policy in policies.items():
            tell(f"{name}: memory")
            memory[name] = _memory(job, runner, policy, shape)
        memory = _with_prefill_stage(memory)
        begun = perf_counter()
        while (number := len(turns)) < job.runs or perf_counter() - begun < job.min_time_s:
            pair = f"pair {number + 1}" + (f" of {job.runs}" if number < job.runs else "")
            first, runs = number % len(policies), {}
            for name in [*policies][first:] + [*policies][:first]:
                tell(f"{name}: {pair}")
                runs[name] = runner.run(job.turn(number), policies[name])
            turns.append(runs)
    except Stopped:
        pass
    except Exception as error:
        if isinstance(error, OutOfMemory) and job.batch > 1:
            sizes = sorted({1, max(1, job.batch // 4), job.batch // 2})
            error.hint = f"mvw profile --batch {','.join(map(str, sizes))}"
        if not turns:
            raise
        # What was measured is kept, and said to be less than was asked for.
        ended = error_line(error)
        failed(error)
    return _cell(job, turns, memory, ended) if turns else None


def device_busy(session: Session, job: Job, cell: Cell) -> float | None:
    """Measure the part of a step of the baseline in which the device runs kernels.

    To be called after all that is timed, as a tracer that was once loaded may slow what comes after
    it. None where that can't be told.
    """
    baseline = next((arm for arm in job.arms if arm.name == BASELINE), None)
    if baseline is None:
        return None
    runner = Runner(session, job.settings(), stopping=lambda: False)
    kernel_s = runner.kernel_seconds(job.turn(0), baseline.policy)
    if kernel_s is None:
        return None
    step_ms = next(arm.tpot_ms.median for arm in cell.arms if arm.name == BASELINE)
    return min(1.0, kernel_s * 1e3 / step_ms)


def workload(session: Session, job: Job, source: ItemSource) -> Workload:
    """Describe what is run, by the first item.

    Raises:
        MvwError: an image can't be read, or the model not be run on it.
    """
    item = job.items[0]
    files = read_images(session, item)
    request = session.request([file.image for file in files], item.question)
    prompt, vision = int(request.inputs["input_ids"].shape[1]), request.layout.vision_tokens
    if session.engine.prepares_images:  # and writes the vision tokens into the prompt
        asked = replace(request, settings=replace(job.settings(), max_new_tokens=1))
        [read] = [event for event in session.run([asked]) if isinstance(event, Prefilled)]
        prompt, vision = read.prompt_tokens, read.vision_tokens
    width, height = files[0].size if files else (0, 0)
    return Workload(
        mode=job.mode,
        new_tokens=job.new_tokens,
        items=len(job.items),
        source=source,
        prompt_tokens=prompt,
        vision_tokens=vision,
        image_width_px=width,
        image_height_px=height,
        seed=job.seed,
        warm_up=job.warm_up,
        runs=job.runs,
        min_time_s=job.min_time_s,
    )


def _memory(job: Job, runner: Runner, policy: WithdrawalPolicy, shape: Shape | None) -> Memory:
    """Make a run that is watched, on the items of the first turn."""
    model, engine = runner.session.loaded.model, runner.session.engine
    in_use: list[int] = []
    allocated: list[int] = []

    def watch(slots: Slots) -> None:
        in_use.append(slots.kv_bytes)
        allocated.append(slots.kv_allocated_bytes)

    relieve(model.device)
    peaks = device.Peaks(device.devices_of(model), process=engine.in_process)
    run = runner.run(job.turn(0), policy, watch)
    before, after = events.kv_bytes(run.events)
    formula = None
    # What another process holds is counted by the same formula, and would agree with itself.
    if shape is not None and engine.in_process:
        formula = events.formula_kv_bytes(shape, engine.dtype.itemsize, run.events)
    formula_before, formula_after = formula or (None, None)
    return Memory(
        weight_bytes=device.weight_bytes(model),
        kv_bytes_before=before,
        kv_bytes_after=after,
        kv_formula_bytes_before=formula_before,
        kv_formula_bytes_after=formula_after,
        kv_blocks_freed=events.blocks_freed(run.events),
        device_allocated_peak_bytes=peaks.allocated_bytes,
        device_reserved_peak_bytes=peaks.reserved_bytes,
        process_peak_bytes=peaks.process_bytes,
        kv_bytes_along=in_use,
        kv_allocated_along=allocated,
        kv_bytes_prefilled=events.prefilled_bytes(run.events),
        host_offloaded_peak_bytes=events.offloaded_peak_bytes(run.events),
        stages=events.stages(run.events),
    )


def _with_prefill_stage(memory: dict[str, Memory]) -> dict[str, Memory]:
    """Add what a prefill has withdrawn to its arm's stages: what the baseline holds tells it."""
    whole = memory[BASELINE].kv_bytes_prefilled if BASELINE in memory else None
    found = {}
    for name, one in memory.items():
        left, stages = one.kv_bytes_prefilled, one.stages
        if whole is not None and left is not None and left < whole:
            stages = [Stage(0, whole, left), *stages]
        found[name] = replace(one, stages=stages)
    return found


def _shape(session: Session) -> Shape | None:
    """Count the model from its configuration; None of an adapter that can't be counted."""
    try:
        return shape_of(session.adapter, session.loaded.model.config)
    except Exception:  # of adapters by others, which need not tell it
        return None


def _cell(
    job: Job, turns: Sequence[dict[str, Run]], memory: dict[str, Memory], ended: str | None
) -> Cell:
    samples = {arm.name: [runs[arm.name] for runs in turns] for arm in job.arms}
    if not all(any(run.steps for run in runs) for runs in samples.values()):
        raise ModelProblem(
            "There is nothing to measure: every answer ends with its first token.",
            cause="In the natural mode an answer ends where the model ends it.",
            hint=f"mvw profile --new-tokens {job.new_tokens}",
        )
    arms = [
        figures.arm(name, runs, None if name == BASELINE else samples.get(BASELINE), memory[name])
        for name, runs in samples.items()
    ]
    unstable = figures.unstable(job.batch, job.mode, len(job.items), len(turns), arms)
    return Cell(job.batch, len(turns), arms, unstable, ended)
