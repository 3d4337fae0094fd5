"""Two reports side by side, if what they measured is the same, and what else differs between them.

The two were not run in turn, so their samples are not paired: intervals are wider than those
within one report, and a machine that has changed in between is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal, TypeVar

from mvw_cli.bench.documents import Arm, Comparison, ProfileReport
from mvw_cli.bench.stats import FEWEST_PAIRS, Shown, bootstrap_interval, claim, medians
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
    shown: Shown
    """What the interval allows to say."""


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
    """Of speeds that have a sample for each run."""


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Two reports, figure by figure."""

    a: str
    b: str
    """Names of the files."""
    figures: list[Figure]
    remarks: list[str]
    """What else differs between the two runs."""


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
    arms = _common_arms(a, b)
    obstacles = [f"other {found}" for found in _unlike(_measured(a), _measured(b))]
    if None not in (a.model.revision, b.model.revision) and a.model.revision != b.model.revision:
        obstacles.append(f"other revision: {a.model.revision} and {b.model.revision}")
    if not obstacles and not arms:
        obstacles.append("no arm was measured at the same batch size in both")
    if obstacles:
        raise UsageProblem(
            f"Cannot compare {names[0]} with {names[1]}",
            cause="; ".join(obstacles),
            hint="mvw compare --help",
        )
    figures: list[Figure] = []
    for batch, arm, its in arms:
        figures += _speeds(batch, arm, its)
        for name in MEMORY:
            values = getattr(arm.memory, name), getattr(its.memory, name)
            if values != (None, None):
                figures.append(Figure(batch, arm.name, name, "memory", *values, None))
    figures += _answers(a, b)
    remarks = [f"{found} differ" for found in _unlike(_beside(a), _beside(b))]
    return SideBySide(*names, figures, remarks)


def to_dict(side: SideBySide) -> dict[str, Any]:
    """Serialise."""
    return {"schema_version": SCHEMA_VERSION, **asdict(side)}


def unpaired(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> Unpaired:
    """Compare two rates that were not sampled in turn; neither may be empty."""
    interval = None
    if min(len(a), len(b)) >= FEWEST_PAIRS:
        interval = bootstrap_interval(
            lambda one, other: medians(other) / medians(one), a, b, seed=seed
        )
    return Unpaired(median(b) / median(a), interval, (len(a), len(b)), claim(interval))


def _speeds(batch: int, a: Arm, b: Arm) -> Iterator[Figure]:
    for name in ("ttft_ms", "tpot_ms", "answer_s", "tokens_per_s"):
        one, other = getattr(a, name), getattr(b, name)
        against = _against(name, one.samples, other.samples)
        yield Figure(batch, a.name, name, "speed", one.median, other.median, against)


def _against(name: str, a: Sequence[float], b: Sequence[float]) -> Unpaired | None:
    if name == "tpot_ms":
        # Steps of one run must not be drawn apart: the tokens per second of the runs tell this.
        return None
    if min(*a, *b) <= 0:  # an answer of one token has no rate
        return None
    if name == "tokens_per_s":
        return unpaired(a, b)
    return unpaired([1 / time for time in a], [1 / time for time in b])


def _answers(a: ProfileReport, b: ProfileReport) -> Iterator[Figure]:
    if a.answers is None or b.answers is None:
        return
    for arm, its in _common(a.answers.arms, b.answers.arms, lambda arm: arm.name):
        for name, read in ANSWERS.items():
            one, other = read(arm, a.answers.references), read(its, b.answers.references)
            if one is not None or other is not None:
                yield Figure(None, arm.name, name, "answers", one, other, None)


# -- whether the two measured the same ---------------------------------------------------------


def _measured(report: ProfileReport) -> dict[str, object]:
    """Gather what has to be the same for figures to be about the same thing."""
    model, work = report.model, report.workload
    return {
        "device": f"{report.environment.device_name} ({model.device.partition(':')[0]})",
        "model": f"{model.name} of {model.adapter}",
        "weights": "random" if model.random_weights else "those of the checkpoint",
        "dtype": model.dtype,
        "quantization": report.profile.get("values", {}).get("quantization"),
        "mode": work.mode,
        "length of the output": work.new_tokens,
        "number of vision tokens": work.vision_tokens,
        "length of the prompt": work.prompt_tokens,
    }


def _beside(report: ProfileReport) -> dict[str, object]:
    """Gather what a comparison may be about; a reader has to know of it."""
    work = report.workload
    cells = {cell.batch: [arm.name for arm in cell.arms] for cell in report.cells}
    return {
        **asdict(report.environment),
        "attention": report.model.attention,
        "cross_attention": report.profile.get("values", {}).get("cross_attention"),
        "revision": report.model.revision,
        "images": f"{work.image_width_px} x {work.image_height_px} px",
        "items": f"{work.items} ({work.source})",
        "seed": work.seed,
        "batch sizes": ", ".join(map(str, cells)),
        "arms": ", ".join(dict.fromkeys(name for names in cells.values() for name in names)),
    }


def _unlike(a: Mapping[str, object], b: Mapping[str, object]) -> Iterator[str]:
    for what, value in a.items():
        one, other = ("none" if found is None else str(found) for found in (value, b[what]))
        if one != other:
            yield f"{what}: {one} and {other}"


def _common_arms(a: ProfileReport, b: ProfileReport) -> list[tuple[int, Arm, Arm]]:
    """Pair the arms of the same name at the same batch size."""
    return [
        (one.batch, arm, its)
        for one, other in _common(a.cells, b.cells, lambda cell: cell.batch)
        for arm, its in _common(one.arms, other.arms, lambda arm: arm.name)
    ]


def _common(a: Iterable[T], b: Iterable[T], key: Callable[[T], object]) -> list[tuple[T, T]]:
    others = {key(one): one for one in b}
    return [(one, others[key(one)]) for one in a if key(one) in others]
