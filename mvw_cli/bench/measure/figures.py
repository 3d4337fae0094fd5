"""The runs of one arm made into its figures, compared with the baseline's.

Samples of a figure are of runs, of steps or of sequences, as `documents.Arm` says; ratios are taken
between runs of the same turn only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median

from mvw_cli.bench.documents import Arm, Memory, Mode, Phases
from mvw_cli.bench.measure import events
from mvw_cli.bench.measure.run import Run, Step
from mvw_cli.bench.stats import Ratio, Summary, paired_ratio, summarise

_DIGITS = 4
"""Of milliseconds: a tenth of a microsecond, below which no clock here tells anything."""


def arm(name: str, runs: Sequence[Run], baseline: Sequence[Run] | None, memory: Memory) -> Arm:
    """Sum up an arm.

    Args:
        runs: at least one, of which at least one has made a step.
        baseline: the runs of the baseline in the same turns; None for that arm itself, and where
            there is none.
    """
    steps = [step for run in runs for step in run.steps]
    # What the withdrawal itself takes falls into the step that follows it, and has its own phase.
    before = [step.seconds - step.withdrawal_s for step in steps if not step.withdrawn]
    after = [step.seconds - step.withdrawal_s for step in steps if step.withdrawn]
    return Arm(
        name=name,
        withdrawn_after=events.withdrawn_after(runs[0].events, runs[0].events[0].request),
        generated_tokens=summarise([float(len(answer)) for run in runs for answer in run.outputs]),
        ttft_ms=_ms(run.ttft_s for run in runs),
        tpot_ms=_ms(step.seconds for step in steps),
        tpot_before_ms=_known_ms(before),
        tpot_after_ms=_known_ms(after),
        tokens_per_s=summarise([rate for run in runs if (rate := tokens_per_s(run)) is not None]),
        answer_s=summarise([run.answer_s for run in runs]),
        phases=phases(runs),
        memory=memory,
        step_ms=along(runs),
        ratios={} if baseline is None else ratios(runs, baseline),
        bound=None,
        vision=events.vision_statistics([run.events for run in runs]),
    )


def phases(runs: Sequence[Run]) -> Phases:
    """Sum up where the time of a run goes."""
    return Phases(
        read_ms=_ms(run.read_s for run in runs),
        preprocess_ms=_ms(run.preprocess_s for run in runs),
        vision_ms=_known_ms(run.vision_s for run in runs),
        prefill_ms=_ms(run.prefill_s for run in runs),
        decode_before_ms=_known_ms(_spent(run, lambda step: not step.withdrawn) for run in runs),
        withdrawal_ms=_known_ms(run.withdrawal_s for run in runs),
        decode_after_ms=_known_ms(_spent(run, lambda step: step.withdrawn) for run in runs),
    )


def ratios(runs: Sequence[Run], baseline: Sequence[Run]) -> dict[str, Ratio]:
    """Compare an arm with its baseline, turn by turn, as `report.Arm.ratios`."""
    turns = list(zip(baseline, runs, strict=True))
    # An answer of a single token, in the natural mode, has no step to compare.
    decoding = [(one, other) for one, other in turns if one.steps and other.steps]

    def compared(pairs: Sequence[tuple[Run, Run]], slowness: Callable[[Run], float]) -> Ratio:
        return paired_ratio(*zip(*((slowness(a), slowness(b)) for a, b in pairs), strict=True))

    found = {
        "ttft": compared(turns, lambda run: run.ttft_s),
        "answer": compared(turns, lambda run: run.answer_s),
    }
    if decoding:
        found["tpot"] = compared(decoding, lambda run: median(step.seconds for step in run.steps))
        found["tokens_per_s"] = compared(decoding, lambda run: 1 / (tokens_per_s(run) or 1))
    return found


def tokens_per_s(run: Run) -> float | None:
    """Tokens of all sequences over the time of all steps; None without a step."""
    return sum(step.tokens for step in run.steps) / run.decode_s if run.steps else None


def along(runs: Sequence[Run]) -> list[float]:
    """Median time in ms of each step along the output, of the runs that got so far."""
    longest = max(len(run.steps) for run in runs)
    return [
        round(median(run.steps[n].seconds for run in runs if n < len(run.steps)) * 1e3, _DIGITS)
        for n in range(longest)
    ]


def unstable(batch: int, mode: Mode, items: int, pairs: int, arms: Sequence[Arm]) -> list[str]:
    """Name the figures of runs that spread too far for a median to mean much, and the way out."""
    remedy = "Leave the machine to it, fix its clock rate"
    if items > batch:
        remedy = "Its items may differ in size: measure one alone"
    found = []
    for one in arms:
        figures = {"time to first token": one.ttft_ms, "tokens per second": one.tokens_per_s}
        if mode == "fixed":  # in the natural mode answers differ in length, and so in time
            figures["time of an answer"] = one.answer_s
        for name, figure in figures.items():
            if figure.unstable:
                found.append(
                    f"Batch {batch}, {one.name}: {name} spreads by {100 * figure.spread:.0f} % "
                    f"(quartiles over median). {remedy}, or measure more with --runs {3 * pairs}."
                )
    return found


def _spent(run: Run, chosen: Callable[[Step], bool]) -> float | None:
    times = [step.seconds - step.withdrawal_s for step in run.steps if chosen(step)]
    return sum(times) if times else None


def _ms(seconds: Iterable[float]) -> Summary:
    return summarise([round(one * 1e3, _DIGITS) for one in seconds])


def _known_ms(seconds: Iterable[float | None]) -> Summary | None:
    known = [one for one in seconds if one is not None]
    return _ms(known) if known else None
