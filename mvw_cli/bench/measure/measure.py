"""All arms at one batch size, measured in this process.

First the warm-up, of which nothing counts; then one run of each arm that is watched for memory and
not timed; then the turns that count (`turns.py`), and at last one run whose kernels are traced. It
does not know what the figures will be held against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvw_cli.bench.documents import BASELINE, Arm, Cell, Memory, Model, Workload
from mvw_cli.bench.measure import events, figures, memory
from mvw_cli.bench.measure.busy import kernel_seconds
from mvw_cli.bench.measure.energy import nvml
from mvw_cli.bench.measure.job import Job, policy_of, profile_of, settings_of
from mvw_cli.bench.measure.turns import Counter, Progress, Samples, run_turns
from mvw_cli.bench.stats import Ratio
from mvw_cli.environment import Environment, describe_environment
from mvw_cli.errors import ModelProblem, OutOfMemory
from mvw_cli.text import error_line

if TYPE_CHECKING:
    from mvw_cli.bench.measure.run import Runner
    from mvw_cli.cost.shape import Shape
    from mvw_cli.policy import WithdrawalPolicy
    from mvw_cli.session import Session


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a job."""

    environment: Environment
    """Of the process that measured."""
    model: Model
    workload: Workload
    cell: Cell | None
    """None where it was stopped before the first turn was whole."""
    profiler_cost: Ratio | None
    stopped: bool
    """Whether it was stopped before all pairs were there."""
    ended: str | None = None
    """What ended it before that, where something went wrong after the first whole turn."""


def measure(
    job: Job,
    *,
    progress: Progress = lambda text, done, total: None,
    stopping: Callable[[], bool] = lambda: False,
    session: Session | None = None,
) -> Measured:
    """Measure a cell in this process.

    Args:
        progress: told before each run.
        stopping: asked between steps; what there is by then is returned.
        session: on the job's profile, where it is open already.

    Raises:
        BadImage: an image can't be read.
        PluginProblem: a policy can't be used.
        ModelProblem: the model can't be loaded, or not be served exactly, or has nothing to decode.
        OutOfMemory: the model does not fit, or the batch not beside it.
    """
    from mvw_cli.bench.measure.run import Runner, Stopped
    from mvw_cli.session import open_session

    policies = {arm.name: policy_of(job, arm) for arm in job.arms}
    profile, unmarked = profile_of(job), job.runs * (BASELINE in policies)
    steps = Counter(progress, (job.warm_up + 1 + job.runs) * len(policies) + unmarked)
    if session is None:
        steps.say("loading the model")
        session = open_session(
            profile,
            slots=job.batch,
            allow_pickle=job.allow_pickle,
            random_weights=job.random_weights,
        )
    model = session.loaded.model
    seen: dict[str, Memory] = {}
    samples = Samples({name: [] for name in policies})
    kernels: float | None = None
    stopped, ended = False, None
    with ExitStack() as stack:
        stack.enter_context(_smaller_batch(job))
        gpus = stack.enter_context(nvml(memory.devices_of(model)))
        runner = Runner(session, settings_of(job), profile.images.max_pixels, stopping, gpus)
        workload = _workload(job, runner)
        try:
            for number in range(job.warm_up):
                for name, policy in policies.items():
                    steps.say(f"{name}: warm-up")
                    runner.run(job.turn(number), policy)
                    steps.done += 1
            shape = _shape(session)
            for name, policy in policies.items():
                steps.say(f"{name}: memory")
                seen[name] = _memory(job, runner, policy, shape)
                steps.done += 1
            run_turns(job, runner, policies, samples, steps)
            # Last, as a tracer that was once loaded may slow what comes after it.
            kernels = kernel_seconds(runner, job.turn(0), policies.get(BASELINE))
        except Stopped:
            stopped = True
        except Exception as error:
            if not samples.pairs:
                raise
            # What was measured is kept, and said to be less than was asked for.
            ended = error_line(error)
    facts = session.facts()
    return Measured(
        environment=describe_environment(facts["device"]),
        model=Model(**facts, random_weights=job.random_weights),
        workload=workload,
        cell=_cell(job, samples, seen, kernels, ended),
        profiler_cost=samples.profiler_cost,
        stopped=stopped,
        ended=ended,
    )


def _memory(job: Job, runner: Runner, policy: WithdrawalPolicy, shape: Shape | None) -> Memory:
    """Make a run that is watched, on the items of the first turn."""
    from mvw_cli.engine.memory import relieve

    model = runner.session.loaded.model
    watch = memory.Watch(memory.devices_of(model))
    relieve(model.device)
    watch.begin()
    items = job.turn(0)
    run = runner.run(items, policy, watch)
    before, after = events.kv_bytes(run.events)
    formula: tuple[int, int] | None = None
    if shape is not None:
        requests = runner.encode(items, runner.read(items), policy)
        formula = events.formula_kv_bytes(shape, model.dtype.itemsize, requests, run.events)
    return Memory(
        weight_bytes=memory.weight_bytes(model),
        kv_bytes_before=before,
        kv_bytes_after=after,
        kv_formula_bytes_before=None if formula is None else formula[0],
        kv_formula_bytes_after=None if formula is None else formula[1],
        device_allocated_peak_bytes=watch.allocated_peak_bytes,
        device_reserved_peak_bytes=watch.reserved_peak_bytes,
        process_peak_bytes=watch.process_peak_bytes,
        timeline=watch.timeline(events.change_steps(run.events)),
        device_process_bytes=None if runner.gpus is None else runner.gpus.process_bytes(),
        kv_bytes_prefilled=events.prefilled_bytes(run.events),
        host_offloaded_peak_bytes=events.offloaded_peak_bytes(run.events),
    )


def _shape(session: Session) -> Shape | None:
    """Count the model from its configuration; None of an adapter that can't be counted."""
    from mvw_cli.cost.shape import shape_of

    try:
        return shape_of(session.adapter, session.loaded.model.config)
    except Exception:  # of adapters by others, which need not tell it
        return None


def _workload(job: Job, runner: Runner) -> Workload:
    [item], [files] = job.items[:1], runner.read(job.items[:1])
    request = runner.session.request([file.image for file in files], item.question)
    width, height = files[0].size if files else (0, 0)
    return Workload(
        mode=job.mode,
        new_tokens=job.new_tokens,
        items=len(job.items),
        source=job.source,
        prompt_tokens=int(request.inputs["input_ids"].shape[1]),
        vision_tokens=request.layout.vision_tokens,
        image_width_px=width,
        image_height_px=height,
        seed=job.seed,
        warm_up=job.warm_up,
        runs=job.runs,
        min_time_s=job.min_time_s,
    )


def _cell(
    job: Job,
    samples: Samples,
    seen: dict[str, Memory],
    kernel_s: float | None,
    ended: str | None,
) -> Cell | None:
    pairs = samples.pairs
    if not pairs:
        return None
    if not all(any(run.steps for run in runs) for runs in samples.runs.values()):
        raise ModelProblem(
            "There is nothing to measure: every answer ends with its first token.",
            cause="In the natural mode an answer ends where the model ends it.",
            hint=f"mvw profile --new-tokens {job.new_tokens}",
        )
    baseline = samples.runs.get(BASELINE)
    arms: list[Arm] = [
        figures.arm(name, runs, None if name == BASELINE else baseline, seen[name])
        for name, runs in samples.runs.items()
    ]
    unstable = figures.unstable(job.batch, job.mode, len(job.items), pairs, arms)
    if ended is not None:
        unstable.append(f"Batch {job.batch} ended early, with {pairs} whole pairs: {ended}.")
    first = next((arm for arm in arms if arm.name == BASELINE), None)
    busy: float | None = None
    if kernel_s is not None and first is not None:
        busy = min(1.0, kernel_s * 1e3 / first.tpot_ms.median)
    return Cell(job.batch, pairs, "shared", arms, unstable, busy)


@contextmanager
def _smaller_batch(job: Job) -> Iterator[None]:
    """Where a batch does not fit, name the way out that there is: a smaller one."""
    try:
        yield
    except OutOfMemory as error:
        if job.batch > 1:
            error.hint = f"mvw profile --batch {_halves(job.batch)}"
        raise


def _halves(batch: int) -> str:
    sizes: Sequence[int] = sorted({1, max(1, batch // 4), batch // 2})
    return ",".join(map(str, sizes))
