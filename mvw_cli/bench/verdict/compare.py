"""Two reports side by side, if what they measured is the same.

The two were not run in turn, so their samples are not paired: intervals are wider than those
within one report, and a machine that has changed in between is not seen. It does not know how a
comparison is drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from mvw_cli.bench.measure.stats import Shown, Summary
from mvw_cli.bench.report.documents import Arm, Comparison, Report
from mvw_cli.bench.verdict.comparable import common_arms, common_cells, differences, obstacles
from mvw_cli.errors import UsageProblem

SCHEMA_VERSION = 1
ENOUGH = 6
"""Samples from which even the smallest and the largest enclose the median with 95 %: 1 - 2/2^n."""
_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Unpaired:
    """How B stands to A, as a ratio of rates: above 1, B is faster."""

    ratio: float
    """Of the medians."""
    interval_95: tuple[float, float] | None
    """Percentile bootstrap over both; None where there are too few samples for one."""
    samples: tuple[int, int]

    @property
    def shown(self) -> Shown:
        """What the interval allows to say."""
        if self.interval_95 is None:
            return "no difference shown"
        low, high = self.interval_95
        return "faster" if low > 1 else "slower" if high < 1 else "no difference shown"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure in both reports."""

    batch: int | None
    """None for answers, which are given one at a time."""
    arm: str
    name: str
    """With its unit, as in the JSON of a report: `tpot_ms`, `kv_bytes_after`."""
    kind: Literal["speed", "memory", "answers"]
    a: float | None
    b: float | None
    against: Unpaired | None
    """Of speeds only."""


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Two reports, figure by figure."""

    a: str
    b: str
    """Names of the files."""
    figures: list[Figure]
    remarks: list[str]
    """What else differs between the two runs."""


def compare(a: Report, b: Report, *, names: tuple[str, str]) -> SideBySide:
    """Set two reports side by side.

    Raises:
        UsageProblem: they did not measure the same; the cause names all that differs.
    """
    reasons = list(obstacles(a, b))
    if reasons:
        raise UsageProblem(
            f"Cannot compare {names[0]} with {names[1]}",
            cause="; ".join(reasons),
            hint="mvw compare --help",
        )
    figures: list[Figure] = []
    for one, other in common_cells(a, b):
        for arm, its in common_arms(one, other):
            figures += _speeds(one.batch, arm, its, fixed=a.workload.mode == "fixed")
            figures += _memory(one.batch, arm, its)
    figures += _answers(a, b)
    return SideBySide(*names, figures, list(differences(a, b)))


def to_dict(side: SideBySide) -> dict[str, Any]:
    """Serialise, with what each interval shows."""
    figures = []
    for figure in side.figures:
        entry = asdict(figure)
        if figure.against is not None:
            entry["against"]["shown"] = figure.against.shown
        figures.append(entry)
    return {"schema_version": SCHEMA_VERSION, **asdict(side), "figures": figures}


def unpaired(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> Unpaired:
    """Compare two rates that were not sampled in turn.

    Raises:
        ValueError: there is nothing in one of them.
    """
    if not a or not b:
        raise ValueError("no samples")
    ratio, sizes = median(b) / median(a), (len(a), len(b))
    if min(sizes) < ENOUGH:
        return Unpaired(ratio, None, sizes)
    rng = random.Random(seed)
    one, other = sorted(a), sorted(b)
    drawn = sorted(resampled(other, rng) / resampled(one, rng) for _ in range(_DRAWS))
    return Unpaired(ratio, (drawn[int(0.025 * _DRAWS)], drawn[int(0.975 * _DRAWS)]), sizes)


TIMES: dict[str, Callable[[Arm], Summary]] = {
    "ttft_ms": lambda arm: arm.ttft_ms,
    "tpot_ms": lambda arm: arm.tpot_ms,
    "answer_s": lambda arm: arm.answer_s,
}


def resampled(ordered: Sequence[float], rng: random.Random) -> float:
    """Draw the median of as many samples taken with replacement, without taking each of them.

    Uniform places in the order have the middle ones distributed as Beta, so that one or two draws
    do, however many samples there are.
    """
    count = len(ordered)
    middle = (count + 1) // 2
    place = rng.betavariate(middle, count - middle + 1)
    low = ordered[min(count - 1, int(place * count))]
    if count % 2:
        return low
    place += (1 - place) * rng.betavariate(1, count - middle)
    return (low + ordered[min(count - 1, int(place * count))]) / 2


def _speeds(batch: int, a: Arm, b: Arm, *, fixed: bool) -> Iterator[Figure]:
    for name, read in TIMES.items():
        one, other = (_runs(read(arm), arm, fixed=fixed) for arm in (a, b))
        against = _rates([1 / t for t in one], [1 / t for t in other])
        yield Figure(batch, a.name, name, "speed", read(a).median, read(b).median, against)
    rates = a.tokens_per_s, b.tokens_per_s
    against = _rates(rates[0].samples, rates[1].samples)
    yield Figure(batch, a.name, "tokens_per_s", "speed", rates[0].median, rates[1].median, against)


def _rates(a: Sequence[float], b: Sequence[float]) -> Unpaired | None:
    # An answer of one token has no rate.
    return unpaired(a, b) if min([*a, *b], default=0) > 0 and a and b else None


def _runs(summary: Summary, arm: Arm, *, fixed: bool) -> list[float]:
    """Give one figure per run: the steps of a run are not drawn apart from one another.

    Empty where they can't be told apart, as in the natural mode, or where a time is none.
    """
    samples, runs = summary.samples, len(arm.answer_s.samples)
    if min(samples, default=0) <= 0:
        return []
    if len(samples) == runs:
        return samples
    if not fixed or not runs or len(samples) % runs:
        return []
    size = len(samples) // runs
    return [median(samples[start : start + size]) for start in range(0, len(samples), size)]


def _memory(batch: int, a: Arm, b: Arm) -> Iterator[Figure]:
    for name in (
        "weight_bytes",
        "kv_bytes_prefilled",
        "kv_bytes_before",
        "kv_bytes_after",
        "device_allocated_peak_bytes",
        "device_reserved_peak_bytes",
        "process_peak_bytes",
    ):
        one, other = getattr(a.memory, name), getattr(b.memory, name)
        if one is not None or other is not None:
            yield Figure(batch, a.name, name, "memory", one, other, None)


ANSWERS: dict[str, Callable[[Comparison, int], float | None]] = {
    "identical_share": lambda arm, _: arm.identical / arm.items if arm.items else None,
    "agreement": lambda arm, _: arm.agreement,
    "accuracy": lambda arm, references: (
        arm.correct / references if arm.correct is not None and references else None
    ),
}


def _answers(a: Report, b: Report) -> Iterator[Figure]:
    if a.answers is None or b.answers is None:
        return
    others = {arm.name: arm for arm in b.answers.arms}
    for arm in a.answers.arms:
        for name, read in ANSWERS.items():
            if arm.name not in others:
                continue
            one = read(arm, a.answers.references)
            other = read(others[arm.name], b.answers.references)
            if one is not None or other is not None:
                yield Figure(None, arm.name, name, "answers", one, other, None)
