"""All arms at one batch size, measured in this process.

First the warm-up, of which nothing counts; then one run of each arm that is watched for memory and
not timed; then the turns that count, and at last one run whose kernels are traced.

In each turn every arm runs once, one after the other, on the same items. Another arm begins each
turn (A B C, B C A, C A B), so that none owes anything to its place. In each turn the baseline also
runs without the profiler's marks, before or after its marked run in alternation, so that what the
marks cost is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import perf_counter

from mvw_cli.bench.documents import BASELINE, Cell, Memory, Model, Workload
from mvw_cli.bench.measure import device, events, figures
from mvw_cli.bench.measure.arms import Job
from mvw_cli.bench.measure.run import Run, Runner, Stopped
from mvw_cli.bench.stats import Ratio, paired_ratio
from mvw_cli.cost.shape import Shape, shape_of
from mvw_cli.engine.memory import relieve
from mvw_cli.environment import Environment, describe_environment
from mvw_cli.errors import ModelProblem, OutOfMemory
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.session import Session, open_session
from mvw_cli.text import error_line

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many runs are done, and how many there will be at least."""


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


@dataclass(slots=True)
class Counter:
    """Runs that are done, and who is told of them."""

    tell: Progress
    total: int
    done: int = 0

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Tell what is being done now, and count it once it is done."""
        self.total = max(self.total, self.done + 1)
        self.tell(text, self.done, self.total)
        yield
        self.done += 1


@dataclass(slots=True)
class Samples:
    """Runs that count."""

    runs: dict[str, list[Run]]
    """By arm; of whole turns alone, and so of one length."""
    marked_s: list[float] = field(default_factory=list)
    """Decoding of the baseline, in the turns in which it also ran unmarked."""
    bare_s: list[float] = field(default_factory=list)
    """The same without marks."""

    @property
    def pairs(self) -> int:
        """Number of whole turns."""
        return min(map(len, self.runs.values()))

    @property
    def profiler_cost(self) -> Ratio | None:
        """Decoding with marks over decoding without; None where there is no baseline."""
        return paired_ratio(self.marked_s, self.bare_s) if self.bare_s else None


def run_turns(
    job: Job,
    runner: Runner,
    policies: Mapping[str, WithdrawalPolicy],
    samples: Samples,
    counter: Counter,
) -> None:
    """Run until there are enough pairs and enough time; a turn that is stopped leaves nothing."""
    begun, turn = perf_counter(), 0
    while turn < job.runs or perf_counter() - begun < job.min_time_s:
        items, runs, bare_s = job.turn(turn), {}, 0.0
        pair = f"pair {turn + 1}" + (f" of {job.runs}" if turn < job.runs else "")
        first = turn % len(policies)
        order = [(name, True) for name in [*policies][first:] + [*policies][:first]]
        if BASELINE in policies and turn < job.runs:
            place = order.index((BASELINE, True))
            order.insert(place + 1 - turn % 2, (BASELINE, False))
        for name, marked in order:
            with counter.step(f"{name}{'' if marked else ', unmarked'}: {pair}"):
                if marked:
                    runs[name] = runner.run(items, policies[name])
                else:
                    bare_s = runner.bare(items, policies[name])
        for name, run in runs.items():
            samples.runs[name].append(run)
        if bare_s and runs[BASELINE].steps:
            samples.marked_s.append(runs[BASELINE].decode_s)
            samples.bare_s.append(bare_s)
        turn += 1


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
        MvwError: an image can't be read, a policy not be used, or the model not be loaded or served
            exactly; it has nothing to decode; there is too little memory.
    """
    policies = {arm.name: arm.policy for arm in job.arms}
    unmarked = job.runs * (BASELINE in policies)
    steps = Counter(progress, (job.warm_up + 1 + job.runs) * len(policies) + unmarked)
    if session is None:
        progress("loading the model", 0, steps.total)
        session = open_session(
            job.profile,
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
        gpus = stack.enter_context(device.nvml(device.devices_of(model)))
        runner = Runner(session, job.settings(), job.profile.images.max_pixels, stopping, gpus)
        workload = _workload(job, runner)
        try:
            for number in range(job.warm_up):
                for name, policy in policies.items():
                    with steps.step(f"{name}: warm-up"):
                        runner.run(job.turn(number), policy)
            shape = _shape(session)
            for name, policy in policies.items():
                with steps.step(f"{name}: memory"):
                    seen[name] = _memory(job, runner, policy, shape)
            run_turns(job, runner, policies, samples, steps)
            # Last, as a tracer that was once loaded may slow what comes after it.
            kernels = runner.kernel_seconds(job.turn(0), policies.get(BASELINE))
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
    model = runner.session.loaded.model
    watch = device.Watch(device.devices_of(model))
    relieve(model.device)
    watch.begin()
    items = job.turn(0)
    run = runner.run(items, policy, watch)
    before, after = events.kv_bytes(run.events)
    formula = None
    if shape is not None:
        requests = runner.encode(items, runner.read(items), policy)
        formula = events.formula_kv_bytes(shape, model.dtype.itemsize, requests, run.events)
    formula_before, formula_after = formula or (None, None)
    return Memory(
        weight_bytes=device.weight_bytes(model),
        kv_bytes_before=before,
        kv_bytes_after=after,
        kv_formula_bytes_before=formula_before,
        kv_formula_bytes_after=formula_after,
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
    arms = [
        figures.arm(name, runs, None if name == BASELINE else baseline, seen[name])
        for name, runs in samples.runs.items()
    ]
    unstable = figures.unstable(job.batch, job.mode, len(job.items), pairs, arms)
    if ended is not None:
        unstable.append(f"Batch {job.batch} ended early, with {pairs} whole pairs: {ended}.")
    busy = None
    if kernel_s is not None:  # of the baseline, as it was traced
        step_ms = next(arm.tpot_ms.median for arm in arms if arm.name == BASELINE)
        busy = min(1.0, kernel_s * 1e3 / step_ms)
    return Cell(job.batch, pairs, "shared", arms, unstable, busy)


@contextmanager
def _smaller_batch(job: Job) -> Iterator[None]:
    """Where a batch does not fit, hint a smaller one."""
    try:
        yield
    except OutOfMemory as error:
        if job.batch > 1:
            sizes = sorted({1, max(1, job.batch // 4), job.batch // 2})
            error.hint = f"mvw profile --batch {','.join(map(str, sizes))}"
        raise
