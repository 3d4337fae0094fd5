"""The charts of a report: what they show, with their units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

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
        found += _memory(cell)
    if report.attention is not None:
        found += _attention(report.attention, report.cells[0].arms if report.cells else [])
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
_MEMORY: dict[str, tuple[str, str, str, _Read, _Read]] = {
    "kv-cache": (
        "KV cache",
        "Entries of the KV cache that are in use; behind them the storages that hold them.",
        "storages",
        lambda point: point.kv_bytes,
        lambda point: point.kv_allocated_bytes,
    ),
    "device-memory": (
        "Memory of the device",
        "Memory that is allocated on the device; behind it what the allocator has reserved.",
        "reserved",
        lambda point: point.device_allocated_bytes,
        lambda point: point.device_reserved_bytes,
    ),
    "process-memory": (
        "Memory of the process",
        "Resident memory of the process.",
        "",
        lambda point: point.process_bytes,
        lambda point: None,
    ),
}
"""Title, caption, what the faint curve is, and where both are read."""


def _memory(cell: Cell) -> list[Chart]:
    """Draw the KV cache, and the memory of the device or else of the process."""
    points = [point for arm in cell.arms for point in arm.memory.timeline]
    device = any(point.device_allocated_bytes is not None for point in points)
    return [_memory_chart(cell, "kv-cache"),
            _memory_chart(cell, "device-memory" if device else "process-memory")]  # fmt: skip


def _memory_chart(cell: Cell, name: str) -> Chart:
    title, caption, faint_label, read, read_faint = _MEMORY[name]
    timelines = [
        [point for point in arm.memory.timeline if read(point) is not None] for arm in cell.arms
    ]
    amounts = [value for points in timelines for point in points
               for value in (read(point), read_faint(point)) if value]  # fmt: skip
    largest = max(amounts, default=0)
    unit, size = next((pair for pair in _UNITS if largest >= pair[1]), _UNITS[-1])
    lines: list[Line] = []
    for colour, (arm, points) in enumerate(zip(cell.arms, timelines, strict=True)):
        if not points:
            continue
        after = arm.withdrawn_after
        faint = [value / size for point in points if (value := read_faint(point))]
        line = Line(
            arm.name,
            colour,
            [float(point.token) for point in points],
            [(read(point) or 0) / size for point in points],
            faint if len(faint) == len(points) else None,
            after,
            # What is withdrawn after a token is gone at its point already.
            (after or 0) - 0.5,
        )
        lines.append(line)
    return Chart(
        f"{name}-batch-{cell.batch}",
        f"{title} along the output, batch {cell.batch}",
        TOKENS,
        "memory",
        unit,
        caption,
        lines,
        faint_label,
    )


# -- attention --------------------------------------------------------------------------------


def _attention(found: AttentionMass, arms: Sequence[Arm]) -> list[Chart]:
    """Draw the mean over the layers, and each layer that was watched."""
    first = next((arm.withdrawn_after for arm in arms if arm.withdrawn_after is not None), None)
    layers = plural(len(found.layers), "layer")
    if found.measure == "cross-attention":
        title, y_label = "What vision adds to each token", "share added"
        what = f"What {layers} of cross-attention add to the stream, as a share of its size"
    else:
        title, y_label = "Attention on vision tokens", "share of attention"
        what = "The share of the attention that goes to vision tokens, "
        what += f"mean over heads and {layers}"
    mean = _share_line("vision tokens", 1, found.mass)
    uniform = found.vision_share_of_entries
    if len(uniform) == len(found.mass):
        mean = replace(mean, faint=[100 * share for share in uniform])
    mean = replace(mean, withdrawn_after=first, withdrawn_x=(first or 0) + 0.5)
    # A report with layers that have no figures does not tell which they are.
    complete = len(found.layers) == len(found.by_layer) > 1
    lines = [
        _share_line(f"layer {layer}", place, mass)
        for place, (layer, mass) in enumerate(
            zip(found.layers, found.by_layer, strict=False), start=1
        )
        if mass and complete
    ]
    largest = max((max(line.ys) for line in lines), default=0.0)
    return [
        Chart(
            "attention",
            title,
            TOKENS,
            y_label,
            "%",
            f"{what}, while nothing is withdrawn; a mark shows where the first arm withdraws.",
            [mean] if found.mass else [],
            "what uniform attention would give",
        ),
        Chart(
            "attention-by-layer",
            f"{title}, by layer",
            TOKENS,
            y_label,
            "%",
            "The same for each layer that was watched: the stronger the colour, the larger the "
            f"share, up to {largest:.0f} %.",
            lines,
            heatmap=True,
        ),
    ]


def _share_line(name: str, colour: int, shares: Sequence[float]) -> Line:
    xs = [float(token) for token in range(1, len(shares) + 1)]
    return Line(name, colour, xs, [100 * share for share in shares])


# -- quality against speed --------------------------------------------------------------------

_Interval = tuple[float, float] | None
_QUALITY: dict[
    str, tuple[Callable[[Comparison, Answers], float | None], Callable[[Comparison], _Interval]]
] = {
    "right answers": (
        lambda arm, found: _share(arm.correct, found.references),
        lambda arm: arm.accuracy_interval_95,
    ),
    "same answer": (lambda arm, _: _share(arm.same_answer, arm.items), lambda arm: None),
    "same next token": (lambda arm, _: arm.agreement, lambda arm: arm.agreement_interval_95),
    "identical answers": (lambda arm, _: _share(arm.identical, arm.items), lambda arm: None),
}
"""What quality can be, the best first, with its interval: the first that is known is drawn."""


def _share(amount: int | None, whole: int) -> float | None:
    return amount / whole if amount is not None and whole else None


def _quality(cell: Cell, answers: Answers, mode: Mode) -> Chart:
    """Set the answers of each arm against its speed; the chart is empty without two arms."""
    key = "answer" if mode == "natural" else "tokens_per_s"
    name = next(
        (name for name, (read, _) in _QUALITY.items()
         if any(read(arm, answers) is not None for arm in answers.arms)),
        "identical answers",
    )  # fmt: skip
    read, interval = _QUALITY[name]
    reached = {arm.name: read(arm, answers) for arm in answers.arms}
    ends = {arm.name: interval(arm) for arm in answers.arms}
    if not answers.references and reached.get(BASELINE) is None:
        reached[BASELINE] = 1.0  # it is the same as itself
    points = []
    for colour, arm in enumerate(cell.arms):
        baseline = arm.name == BASELINE
        ratio = Ratio(1.0, (1.0, 1.0), 0) if baseline else arm.ratios.get(key)
        share, low_high = reached.get(arm.name), ends.get(arm.name)
        if ratio is not None and share is not None:
            points.append(
                Point(
                    arm.name,
                    colour,
                    ratio.median,
                    100 * share,
                    None if baseline else ratio.interval_95,
                    low_high and (100 * low_high[0], 100 * low_high[1]),
                )
            )
    shown = {arm.name for arm in cell.arms}
    others = ((name, 100 * share) for name, share in reached.items()
              if name not in shown and share is not None)  # fmt: skip
    speed = "answers per second" if key == "answer" else "tokens per second"
    return Chart(
        f"quality-speed-batch-{cell.batch}",
        f"Quality against speed, batch {cell.batch}",
        f"{speed}, × {BASELINE}",
        name,
        "%",
        f"Each arm by its speed against {BASELINE} and by its answers, with 95 % intervals.",
        points=points if len(points) > 1 else [],
        reference=next(others, None),
    )
