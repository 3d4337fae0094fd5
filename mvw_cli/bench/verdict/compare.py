"""Two reports side by side, if what they measured is the same, and what else differs between them.

The two were not run in turn, so their samples are not paired: intervals are wider than those
within one report, and a machine that has changed in between is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

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
    for one, other in _common_cells(a, b):
        for arm, its in _common_arms(one, other):
            figures += _speeds(one.batch, arm, its, fixed=a.workload.mode == "fixed")
            figures += _memory(one.batch, arm, its)
    figures += _answers(a, b)
    return SideBySide(*names, figures, list(_differences(a, b)))


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
    if min(sizes) < FEWEST_PAIRS:
        return Unpaired(ratio, None, sizes)
    interval = bootstrap_interval(lambda one, other: medians(other) / medians(one), a, b, seed=seed)
    return Unpaired(ratio, interval, sizes)


TIMES: dict[str, Callable[[Arm], Summary]] = {
    "ttft_ms": lambda arm: arm.ttft_ms,
    "tpot_ms": lambda arm: arm.tpot_ms,
    "answer_s": lambda arm: arm.answer_s,
}


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


def _answers(a: ProfileReport, b: ProfileReport) -> Iterator[Figure]:
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


# -- whether the two measured the same ---------------------------------------------------------


def _obstacles(a: ProfileReport, b: ProfileReport) -> Iterator[str]:
    """Name what keeps the figures from being about the same thing."""
    for what, read in MUST_AGREE.items():
        one, other = read(a), read(b)
        if one != other:
            yield f"{what}: {_named(one)} and {_named(other)}"
    revisions = a.model.revision, b.model.revision
    if None not in revisions and revisions[0] != revisions[1]:
        yield f"other revision of the model: {revisions[0]} and {revisions[1]}"
    bare = [name for name, report in (("first", a), ("second", b)) if not report.cells]
    if bare:
        yield f"nothing was measured in the {' and in the '.join(bare)}"
    elif not any(True for _ in _common_cells(a, b)):
        one, other = (", ".join(str(cell.batch) for cell in r.cells) for r in (a, b))
        yield f"no batch size in common: {one} and {other}"
    elif not any(True for pair in _common_cells(a, b) for _ in _common_arms(*pair)):
        one, other = (", ".join(_names(report)) for report in (a, b))
        yield f"no arm in common: {one} and {other}"


def _differences(a: ProfileReport, b: ProfileReport) -> Iterator[str]:
    """Name what differs and may."""
    for what, read in MAY_DIFFER.items():
        one, other = read(a), read(b)
        if one != other:
            yield f"{what} differs: {_named(one)} and {_named(other)}"
    batches = [{cell.batch for cell in report.cells} for report in (a, b)]
    for batch in sorted(batches[0] ^ batches[1]):
        yield f"batch {batch} is in one of them only"
    for one_cell, other_cell in _common_cells(a, b):
        if one_cell.process != other_cell.process:
            yield (
                f"batch {one_cell.batch}: a process that is {one_cell.process} and one that is "
                f"{other_cell.process}"
            )
    arms = [set(_names(report)) for report in (a, b)]
    for name in sorted(arms[0] ^ arms[1]):
        yield f"the arm {name} is in one of them only"


def _named(value: object) -> str:
    return "none" if value is None else str(value)


def _names(report: ProfileReport) -> list[str]:
    return list(dict.fromkeys(arm.name for cell in report.cells for arm in cell.arms))


def _common_cells(a: ProfileReport, b: ProfileReport) -> Iterator[tuple[Cell, Cell]]:
    """Pair the cells of the same batch size."""
    others = {cell.batch: cell for cell in b.cells}
    yield from ((cell, others[cell.batch]) for cell in a.cells if cell.batch in others)


def _common_arms(one: Cell, other: Cell) -> Iterator[tuple[Arm, Arm]]:
    """Pair the arms of the same name."""
    others = {arm.name: arm for arm in other.arms}
    yield from ((arm, others[arm.name]) for arm in one.arms if arm.name in others)
