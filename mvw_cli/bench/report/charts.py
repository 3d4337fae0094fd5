"""The charts of a report: what they show, with their units."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mvw_cli.bench.documents import (
    BASELINE,
    Answers,
    Arm,
    AttentionMass,
    Cell,
    Comparison,
    MemoryPoint,
    Mode,
    ProfileReport,
)
from mvw_cli.bench.stats import Ratio
from mvw_cli.render.chart import Chart, Line, Point
from mvw_cli.text import plural

TOKENS = "generated tokens"
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))


def charts(report: ProfileReport) -> list[Chart]:
    """Make all charts that the report has figures for."""
    found = [_time(cell) for cell in report.cells]
    found += [_attended(cell) for cell in report.cells if _attends_to_part(cell.arms)]
    for cell in report.cells:
        found += [_kv_cache(cell), _device_memory(cell)]
    if report.attention is not None:
        arms = report.cells[0].arms if report.cells else []
        found += [_attention(report.attention, arms), _by_layer(report.attention)]
    if report.answers is not None:
        mode = report.workload.mode
        found += [_quality(cell, report.answers, mode) for cell in report.cells]
    return [chart for chart in found if chart.lines or chart.points]


def _line(arm: Arm, colour: int, first: int, ys: list[float]) -> Line:
    """Draw values by token; the mark stands where the next token is the first without vision."""
    xs = [float(token) for token in range(first, len(ys) + first)]
    after = arm.withdrawn_after
    return Line(arm.name, colour, xs, ys, withdrawn_after=after, withdrawn_x=(after or 0) + 0.5)


def _time(cell: Cell) -> Chart:
    arms = [(colour, arm) for colour, arm in enumerate(cell.arms) if arm.step_ms]
    return Chart(
        f"time-per-token-batch-{cell.batch}",
        f"Time per token along the output, batch {cell.batch}",
        TOKENS,
        "time per token",
        "ms",
        "The median time of each decode step over all runs; a mark shows the withdrawal.",
        [_line(arm, colour, 2, arm.step_ms) for colour, arm in arms],
    )


def _attends_to_part(arms: Sequence[Arm]) -> bool:
    """Whether some arm attends to part of the vision: neither to all of it, nor to none."""
    found = [arm.vision for arm in arms if arm.vision is not None]
    most = max((max(one.attended_along, default=0.0) for one in found), default=0.0)
    return any(0 < value < most * (1 - 1e-9) for one in found for value in one.attended_along)


def _attended(cell: Cell) -> Chart:
    return Chart(
        f"vision-attended-batch-{cell.batch}",
        f"Vision tokens that each token attends to, batch {cell.batch}",
        TOKENS,
        "attended",
        "vision tokens",
        "Mean over the layers that hold vision where nothing is withdrawn, and over the answers.",
        [
            _line(arm, colour, 1, arm.vision.attended_along)
            for colour, arm in enumerate(cell.arms)
            if arm.vision is not None
        ],
    )


# -- memory -----------------------------------------------------------------------------------

_Read = Callable[[MemoryPoint], int | None]


def _kv_cache(cell: Cell) -> Chart:
    return _memory(
        cell,
        ("kv-cache", "KV cache"),
        "Entries of the KV cache that are in use; behind them the storages that hold them.",
        "storages",
        lambda point: point.kv_bytes,
        lambda point: point.kv_allocated_bytes,
    )


def _device_memory(cell: Cell) -> Chart:
    points = [point for arm in cell.arms for point in arm.memory.timeline]
    if all(point.device_allocated_bytes is None for point in points):
        return _memory(
            cell,
            ("process-memory", "Memory of the process"),
            "Resident memory of the process.",
            "",
            lambda point: point.process_bytes,
            lambda point: None,
        )
    return _memory(
        cell,
        ("device-memory", "Memory of the device"),
        "Memory that is allocated on the device; behind it what the allocator has reserved.",
        "reserved",
        lambda point: point.device_allocated_bytes,
        lambda point: point.device_reserved_bytes,
    )


def _memory(
    cell: Cell,
    names: tuple[str, str],
    caption: str,
    faint_label: str,
    read: _Read,
    read_faint: _Read,
) -> Chart:
    lines: list[Line] = []
    for colour, arm in enumerate(cell.arms):
        points = [point for point in arm.memory.timeline if read(point) is not None]
        faint = [float(value) for point in points if (value := read_faint(point))]
        if points:
            lines.append(
                Line(
                    arm.name,
                    colour,
                    [float(point.token) for point in points],
                    [float(read(point) or 0) for point in points],
                    faint if len(faint) == len(points) else None,
                    arm.withdrawn_after,
                    # What is withdrawn after a token is gone at its point already.
                    (arm.withdrawn_after or 0) - 0.5,
                )
            )
    largest = max((max(*line.ys, *(line.faint or [0.0])) for line in lines), default=0.0)
    unit, size = next((pair for pair in _UNITS if largest >= pair[1]), _UNITS[-1])
    for line in lines:
        for values in (line.ys, line.faint or []):
            values[:] = [value / size for value in values]
    return Chart(
        f"{names[0]}-batch-{cell.batch}",
        f"{names[1]} along the output, batch {cell.batch}",
        TOKENS,
        "memory",
        unit,
        caption,
        lines,
        faint_label,
    )


# -- attention --------------------------------------------------------------------------------


def _attention(found: AttentionMass, arms: Sequence[Arm]) -> Chart:
    first = next((arm.withdrawn_after for arm in arms if arm.withdrawn_after is not None), None)
    uniform = found.vision_share_of_entries
    line = Line(
        "vision tokens",
        1,
        [float(token) for token in range(1, len(found.mass) + 1)],
        [100 * share for share in found.mass],
        [100 * share for share in uniform] if len(uniform) == len(found.mass) else None,
        first,
        (first or 0) + 0.5,
    )
    cross = found.measure == "cross-attention"
    layers = plural(len(found.layers), "layer")
    what = (
        f"What {layers} of cross-attention add to the stream, as a share of its size"
        if cross
        else f"The share of the attention that goes to vision tokens, mean over heads and {layers}"
    )
    return Chart(
        "attention",
        "What vision adds to each token" if cross else "Attention on vision tokens",
        TOKENS,
        "share added" if cross else "share of attention",
        "%",
        f"{what}, while nothing is withdrawn; a mark shows where the first arm withdraws.",
        [line] if found.mass else [],
        "what uniform attention would give",
    )


def _by_layer(found: AttentionMass) -> Chart:
    # A report with layers that have no figures does not tell which they are.
    complete = len(found.layers) == len(found.by_layer) > 1
    pairs = list(zip(found.layers, found.by_layer, strict=True)) if complete else []
    lines = [
        Line(
            f"layer {layer}",
            1 + place,
            [float(token) for token in range(1, len(mass) + 1)],
            [100 * share for share in mass],
        )
        for place, (layer, mass) in enumerate(pairs)
        if mass
    ]
    whole = _attention(found, [])
    return Chart(
        "attention-by-layer",
        f"{whole.title}, by layer",
        TOKENS,
        whole.y_label,
        whole.unit,
        "The same for each layer that was watched: the stronger the colour, the larger the "
        f"share, up to {max((max(line.ys) for line in lines), default=0.0):.0f} %.",
        lines,
        heatmap=True,
    )


# -- quality against speed --------------------------------------------------------------------


def _quality(cell: Cell, answers: Answers, mode: Mode) -> Chart:
    """Set the answers of each arm against its speed; the chart is empty without two arms."""
    key = "answer" if mode == "natural" else "tokens_per_s"
    name, read, interval = quality_measure(answers)
    compared = {arm.name: arm for arm in answers.arms}
    points = []
    for colour, arm in enumerate(cell.arms):
        baseline = arm.name == BASELINE
        found = compared.get(arm.name)
        ratio = Ratio(1.0, (1.0, 1.0), 0) if baseline else arm.ratios.get(key)
        reached = None if found is None else read(found)
        if baseline and reached is None and not answers.references:
            reached = 1.0  # it is the same as itself
        if ratio is None or reached is None:
            continue
        ends = None if found is None else interval(found)
        points.append(
            Point(
                arm.name,
                colour,
                ratio.median,
                100 * reached,
                None if baseline else ratio.interval_95,
                None if ends is None else (100 * ends[0], 100 * ends[1]),
            )
        )
    shown = {arm.name for arm in cell.arms}
    others = [(arm.name, read(arm)) for arm in answers.arms if arm.name not in shown]
    speed = "answers per second" if key == "answer" else "tokens per second"
    return Chart(
        f"quality-speed-batch-{cell.batch}",
        f"Quality against speed, batch {cell.batch}",
        f"{speed}, × {BASELINE}",
        name,
        "%",
        f"Each arm by its speed against {BASELINE} and by its answers, with 95 % intervals.",
        points=points if len(points) > 1 else [],
        reference=next(((arm, 100 * value) for arm, value in others if value is not None), None),
    )


_Share = Callable[[Comparison], float | None]
_Interval = Callable[[Comparison], tuple[float, float] | None]


def quality_measure(answers: Answers) -> tuple[str, _Share, _Interval]:
    """Choose what quality is: right answers, or the same answers, next tokens or texts."""
    if answers.references:
        total = answers.references
        return (
            "right answers",
            lambda arm: None if arm.correct is None else arm.correct / total,
            lambda arm: arm.accuracy_interval_95,
        )
    if any(arm.same_answer is not None for arm in answers.arms):
        return "same answer", _same_answer, lambda arm: None
    if any(arm.agreement is not None for arm in answers.arms):
        return "same next token", lambda arm: arm.agreement, lambda arm: arm.agreement_interval_95
    return (
        "identical answers",
        lambda arm: arm.identical / arm.items if arm.items else None,
        lambda arm: None,
    )


def _same_answer(arm: Comparison) -> float | None:
    return arm.same_answer / arm.items if arm.same_answer is not None and arm.items else None
