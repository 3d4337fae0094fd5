"""What the pictures of a report show: lines, marks and points, with their units.

Each format draws the same pictures in its own way. It does not know how anything is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mvw_cli.profiling.report import (
    BASELINE,
    Answers,
    Arm,
    AttentionMass,
    Cell,
    Comparison,
    MemoryPoint,
    Report,
)
from mvw_cli.profiling.stats import Ratio

TOKENS = "generated tokens"
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))


@dataclass(frozen=True, slots=True)
class Line:
    """A curve, and the moment of the withdrawal on it."""

    name: str
    colour: int
    """Place in a palette; 0 is the baseline's."""
    xs: list[float]
    ys: list[float]
    behind: list[float] | None = None
    """A second curve at the same places, drawn more faintly."""
    withdrawn_after: int | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """A place with its 95 % intervals."""

    name: str
    colour: int
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture. Both axes carry numbers; that of the curves' y starts at 0."""

    name: str
    """As a file would be called: `time-per-token-batch-8`."""
    title: str
    x_label: str
    y_label: str
    unit: str
    """Of y."""
    says: str
    """A sentence on what is to be seen, also for those who can't see it."""
    lines: list[Line] = field(default_factory=list)
    behind: str = ""
    """What the faint curves are."""
    points: list[Point] = field(default_factory=list)
    level: tuple[str, float] | None = None
    """A name and the height of a line across the picture."""


def pictures(report: Report) -> list[Picture]:
    """Make all pictures that the report has figures for."""
    found = [_time(cell) for cell in report.cells]
    for cell in report.cells:
        found += [_kv_cache(cell), _device_memory(cell)]
    if report.attention is not None:
        arms = report.cells[0].arms if report.cells else []
        found.append(_attention(report.attention, arms))
    if report.answers is not None:
        found += [_quality(cell, report.answers, report.workload.mode) for cell in report.cells]
    return [picture for picture in found if picture.lines or picture.points]


def _time(cell: Cell) -> Picture:
    lines = [
        Line(
            arm.name,
            colour,
            [float(token) for token in range(2, len(arm.step_ms) + 2)],
            arm.step_ms,
            withdrawn_after=arm.withdrawn_after,
        )
        for colour, arm in enumerate(cell.arms)
        if arm.step_ms
    ]
    return Picture(
        f"time-per-token-batch-{cell.batch}",
        f"Time per token along the output, batch {cell.batch}",
        TOKENS,
        "time per token",
        "ms",
        "The median time of each decode step over all runs; a mark shows the withdrawal.",
        lines,
    )


def _kv_cache(cell: Cell) -> Picture:
    return _memory(
        cell,
        f"kv-cache-batch-{cell.batch}",
        "KV cache",
        "Entries of the KV cache that are in use; behind them the storages that hold them.",
        "storages",
        lambda point: point.kv_bytes,
        lambda point: point.kv_allocated_bytes,
    )


def _device_memory(cell: Cell) -> Picture:
    points = [point for arm in cell.arms for point in arm.memory.timeline]
    if all(point.device_allocated_bytes is None for point in points):
        return _memory(
            cell,
            f"process-memory-batch-{cell.batch}",
            "Memory of the process",
            "Resident memory of the process.",
            "",
            lambda point: point.process_bytes,
            None,
        )
    return _memory(
        cell,
        f"device-memory-batch-{cell.batch}",
        "Memory of the device",
        "Memory that is allocated on the device; behind it what the allocator has reserved.",
        "reserved",
        lambda point: point.device_allocated_bytes,
        lambda point: point.device_reserved_bytes,
    )


def _memory(
    cell: Cell,
    name: str,
    title: str,
    says: str,
    behind: str,
    read: Callable[[MemoryPoint], int | None],
    read_behind: Callable[[MemoryPoint], int | None] | None,
) -> Picture:
    found: list[tuple[int, Arm, list[MemoryPoint], list[int] | None]] = []
    for colour, arm in enumerate(cell.arms):
        points = [point for point in arm.memory.timeline if read(point) is not None]
        second = [value for point in points if read_behind and (value := read_behind(point))]
        if points:
            found.append((colour, arm, points, second if len(second) == len(points) else None))
    largest = max(
        (max([*(read(point) or 0 for point in points), *(second or [])])
         for _, _, points, second in found),
        default=0,
    )  # fmt: skip
    unit, size = next((pair for pair in _UNITS if largest >= pair[1]), _UNITS[-1])
    lines = [
        Line(
            arm.name,
            colour,
            [float(point.token) for point in points],
            [(read(point) or 0) / size for point in points],
            None if second is None else [value / size for value in second],
            arm.withdrawn_after,
        )
        for colour, arm, points, second in found
    ]
    return Picture(
        name,
        f"{title} along the output, batch {cell.batch}",
        TOKENS,
        "memory",
        unit,
        says,
        lines,
        behind,
    )


def _attention(found: AttentionMass, arms: Sequence[Arm]) -> Picture:
    line = Line(
        "vision tokens",
        1,
        [float(token) for token in range(1, len(found.mass) + 1)],
        [100 * share for share in found.mass],
        [100 * share for share in found.vision_share_of_entries]
        if len(found.vision_share_of_entries) == len(found.mass)
        else None,
        next((arm.withdrawn_after for arm in arms if arm.withdrawn_after is not None), None),
    )
    return Picture(
        "attention",
        "Attention on vision tokens",
        TOKENS,
        "share of attention",
        "%",
        "The share of the attention that goes to vision tokens while nothing is withdrawn, mean "
        f"over heads and {len(found.layers)} layers; a mark shows where the first arm withdraws.",
        [line] if found.mass else [],
        "what uniform attention would give",
    )


def _quality(cell: Cell, answers: Answers, mode: str) -> Picture:
    key = "answer" if mode == "natural" else "tokens_per_s"
    name, read, interval = _measure(answers)
    said = {arm.name: arm for arm in answers.arms}
    points = []
    for colour, arm in enumerate(cell.arms):
        ratio = Ratio(1.0, (1.0, 1.0), 0) if arm.name == BASELINE else arm.ratios.get(key)
        quality = read(said[arm.name]) if arm.name in said else None
        if arm.name == BASELINE and quality is None and not answers.references:
            quality = 1.0  # it is the same as itself
        if ratio is None or quality is None:
            continue
        ends = None if arm.name == BASELINE else ratio.interval_95
        bounds = interval(said[arm.name]) if arm.name in said else None
        points.append(
            Point(arm.name, colour, ratio.median, 100 * quality, ends,
                  (100 * bounds[0], 100 * bounds[1]) if bounds else None)
        )  # fmt: skip
    shown = {arm.name for arm in cell.arms}
    level = next(((arm.name, 100 * value) for arm in answers.arms
                  if arm.name not in shown and (value := read(arm)) is not None), None)  # fmt: skip
    speed = "answers per second" if key == "answer" else "tokens per second"
    return Picture(
        f"quality-speed-batch-{cell.batch}",
        f"Quality against speed, batch {cell.batch}",
        f"{speed}, × {BASELINE}",
        name,
        "%",
        f"Each arm by its speed against {BASELINE} and by its answers, with 95 % intervals.",
        points=points if len(points) > 1 else [],
        level=level,
    )


Reading = Callable[[Comparison], float | None]
Interval = Callable[[Comparison], tuple[float, float] | None]


def _measure(answers: Answers) -> tuple[str, Reading, Interval]:
    """Choose what quality is: right answers, or the same next tokens, or the same answers."""
    if answers.references:
        total = answers.references
        return (
            "right answers",
            lambda arm: None if arm.correct is None else arm.correct / total,
            lambda arm: arm.accuracy_interval_95,
        )
    if any(arm.agreement is not None for arm in answers.arms):
        return "same next token", lambda arm: arm.agreement, lambda arm: None
    return (
        "identical answers",
        lambda arm: arm.identical / arm.items if arm.items else None,
        lambda arm: None,
    )
