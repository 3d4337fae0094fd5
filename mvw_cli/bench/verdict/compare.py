"""Two reports side by side, if what they measured is the same, and what else differs between them.

The two were not run in turn, so their samples are not paired: intervals are wider than those
within one report, and a machine that has changed in between is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal, TypeVar

from mvw_cli.bench.documents import Arm, Cell, Comparison, ProfileReport
from mvw_cli.bench.stats import (
    FEWEST_PAIRS,
    Shown,
    Summary,
    bootstrap_interval,
    claim,
    medians,
)
from mvw_cli.errors import UsageProblem

SCHEMA_VERSION = 1
T = TypeVar("T")


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
        return claim(self.interval_95)


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


def _value(report: ProfileReport, key: str) -> object:
    values = report.profile.get("values")
    return values.get(key) if isinstance(values, dict) else None


MUST_AGREE: dict[str, Callable[[ProfileReport], object]] = {
    "other device": lambda r: f"{r.environment.device_name} ({r.model.device.partition(':')[0]})",
    "other model": lambda r: f"{r.model.name} of {r.model.adapter}",
    "other weights": lambda r: "random" if r.model.random_weights else "those of the checkpoint",
    "other dtype": lambda r: r.model.dtype,
    "other quantization": lambda r: _value(r, "quantization"),
    "other mode": lambda r: r.workload.mode,
    "other length of the output": lambda r: r.workload.new_tokens,
    "other number of vision tokens": lambda r: r.workload.vision_tokens,
    "other length of the prompt": lambda r: r.workload.prompt_tokens,
}
"""What has to be the same, and how it is read."""

MAY_DIFFER: dict[str, Callable[[ProfileReport], object]] = {
    "mvw": lambda r: r.environment.mvw,
    "Python": lambda r: r.environment.python,
    "torch": lambda r: r.environment.torch,
    "transformers": lambda r: r.environment.transformers,
    "flash-attn": lambda r: r.environment.flash_attn,
    "platform": lambda r: r.environment.platform,
    "CPU threads": lambda r: r.environment.threads,
    "attention": lambda r: r.model.attention,
    "cross_attention": lambda r: _value(r, "cross_attention"),
    "revision": lambda r: r.model.revision,
    "images": lambda r: f"{r.workload.image_width_px} x {r.workload.image_height_px} px",
    "items": lambda r: f"{r.workload.items} ({r.workload.source})",
    "seed": lambda r: r.workload.seed,
}
"""What a comparison may be about; a reader has to know of it."""

TIMES: dict[str, Callable[[Arm], Summary]] = {
    "ttft_ms": lambda arm: arm.ttft_ms,
    "tpot_ms": lambda arm: arm.tpot_ms,
    "answer_s": lambda arm: arm.answer_s,
}
MEMORY = (
    "weight_bytes",
    "kv_bytes_prefilled",
    "kv_bytes_before",
    "kv_bytes_after",
    "device_allocated_peak_bytes",
    "device_reserved_peak_bytes",
    "process_peak_bytes",
)
ANSWERS: dict[str, Callable[[Comparison, int], float | None]] = {
    "identical_share": lambda arm, _: arm.identical / arm.items if arm.items else None,
    "agreement": lambda arm, _: arm.agreement,
    "accuracy": lambda arm, references: (
        arm.correct / references if arm.correct is not None and references else None
    ),
}


def compare(a: ProfileReport, b: ProfileReport, *, names: tuple[str, str]) -> SideBySide:
    """Set two reports side by side.

    Raises:
        UsageProblem: they did not measure the same; the cause names all that differs.
    """
    reasons = list(_obstacles(a, b))
    if reasons:
        raise UsageProblem(
            f"Cannot compare {names[0]} with {names[1]}",
            cause="; ".join(reasons),
            hint="mvw compare --help",
        )
    figures: list[Figure] = []
    for batch, arm, its in _common_arms(a, b):
        figures += _speeds(batch, arm, its, fixed=a.workload.mode == "fixed")
        for name in MEMORY:
            values = getattr(arm.memory, name), getattr(its.memory, name)
            if values != (None, None):
                figures.append(Figure(batch, arm.name, name, "memory", *values, None))
    figures += _answers(a, b)
    return SideBySide(*names, figures, list(_differences(a, b)))


def to_dict(side: SideBySide) -> dict[str, Any]:
    """Serialise, with what each interval shows."""
    document = {"schema_version": SCHEMA_VERSION, **asdict(side)}
    for figure, entry in zip(side.figures, document["figures"], strict=True):
        if figure.against is not None:
            entry["against"]["shown"] = figure.against.shown
    return document


def unpaired(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> Unpaired:
    """Compare two rates that were not sampled in turn; neither may be empty."""
    ratio, sizes = median(b) / median(a), (len(a), len(b))
    if min(sizes) < FEWEST_PAIRS:
        return Unpaired(ratio, None, sizes)
    interval = bootstrap_interval(lambda one, other: medians(other) / medians(one), a, b, seed=seed)
    return Unpaired(ratio, interval, sizes)


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
    return unpaired(a, b) if a and b and min(*a, *b) > 0 else None


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


def _answers(a: ProfileReport, b: ProfileReport) -> Iterator[Figure]:
    if a.answers is None or b.answers is None:
        return
    for arm, its in _common(a.answers.arms, b.answers.arms, lambda arm: arm.name):
        for name, read in ANSWERS.items():
            one, other = read(arm, a.answers.references), read(its, b.answers.references)
            if one is not None or other is not None:
                yield Figure(None, arm.name, name, "answers", one, other, None)


# -- whether the two measured the same ---------------------------------------------------------


def _obstacles(a: ProfileReport, b: ProfileReport) -> Iterator[str]:
    """Name what keeps the figures from being about the same thing."""
    yield from (f"{what}: {values}" for what, values in _unlike(MUST_AGREE, a, b))
    revisions = a.model.revision, b.model.revision
    if None not in revisions and revisions[0] != revisions[1]:
        yield f"other revision of the model: {revisions[0]} and {revisions[1]}"
    bare = [name for name, report in (("first", a), ("second", b)) if not report.cells]
    if bare:
        yield f"nothing was measured in the {' and in the '.join(bare)}"
    elif not _common_cells(a, b):
        one, other = (", ".join(str(cell.batch) for cell in r.cells) for r in (a, b))
        yield f"no batch size in common: {one} and {other}"
    elif not _common_arms(a, b):
        one, other = (", ".join(_names(report)) for report in (a, b))
        yield f"no arm in common: {one} and {other}"


def _differences(a: ProfileReport, b: ProfileReport) -> Iterator[str]:
    """Name what differs and may."""
    yield from (f"{what} differs: {values}" for what, values in _unlike(MAY_DIFFER, a, b))
    batches = [{cell.batch for cell in report.cells} for report in (a, b)]
    for batch in sorted(batches[0] ^ batches[1]):
        yield f"batch {batch} is in one of them only"
    for one, other in _common_cells(a, b):
        if one.process != other.process:
            yield (
                f"batch {one.batch}: a process that is {one.process} and one that is "
                f"{other.process}"
            )
    for name in sorted(_names(a).keys() ^ _names(b).keys()):
        yield f"the arm {name} is in one of them only"


def _unlike(
    facts: dict[str, Callable[[ProfileReport], object]], a: ProfileReport, b: ProfileReport
) -> Iterator[tuple[str, str]]:
    for what, read in facts.items():
        one, other = ("none" if value is None else str(value) for value in (read(a), read(b)))
        if one != other:
            yield what, f"{one} and {other}"


def _names(report: ProfileReport) -> dict[str, None]:
    return dict.fromkeys(arm.name for cell in report.cells for arm in cell.arms)


def _common_cells(a: ProfileReport, b: ProfileReport) -> list[tuple[Cell, Cell]]:
    return _common(a.cells, b.cells, lambda cell: cell.batch)


def _common_arms(a: ProfileReport, b: ProfileReport) -> list[tuple[int, Arm, Arm]]:
    """Pair the arms of the same name at the same batch size."""
    return [
        (one.batch, arm, its)
        for one, other in _common_cells(a, b)
        for arm, its in _common(one.arms, other.arms, lambda arm: arm.name)
    ]


def _common(a: Iterable[T], b: Iterable[T], key: Callable[[T], object]) -> list[tuple[T, T]]:
    others = {key(one): one for one in b}
    return [(one, others[key(one)]) for one in a if key(one) in others]
