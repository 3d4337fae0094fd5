"""The pictures of a report: what they show, with their units.

Each format draws them in its own way. It does not know how anything is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mvw_cli.bench.report import seen, tradeoff
from mvw_cli.bench.report.documents import Arm, AttentionMass, Cell, MemoryPoint, Report
from mvw_cli.render.picture import Line, Picture

TOKENS = "generated tokens"
BY_LAYER = "attention-by-layer"
"""Of a row for each layer: too long for a terminal."""
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))


def pictures(report: Report) -> list[Picture]:
    """Make all pictures that the report has figures for."""
    found = [_time(cell) for cell in report.cells]
    found += [_attended(cell) for cell in report.cells if seen.differ(cell.arms)]
    for cell in report.cells:
        found += [_kv_cache(cell), _device_memory(cell)]
    if report.attention is not None:
        arms = report.cells[0].arms if report.cells else []
        found.append(_attention(report.attention, arms))
        found.append(_by_layer(report.attention))
    if report.answers is not None:
        found += [
            tradeoff.quality(cell, report.answers, report.workload.mode) for cell in report.cells
        ]
    return [picture for picture in found if picture.lines or picture.points]


def _time(cell: Cell) -> Picture:
    lines = [
        Line(
            arm.name,
            colour,
            [float(token) for token in range(2, len(arm.step_ms) + 2)],
            arm.step_ms,
            withdrawn_after=arm.withdrawn_after,
            mark=_next(arm.withdrawn_after),
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


def _attended(cell: Cell) -> Picture:
    lines = [
        Line(
            arm.name,
            colour,
            [float(token) for token in range(1, len(arm.vision.attended_along) + 1)],
            arm.vision.attended_along,
            withdrawn_after=arm.withdrawn_after,
            mark=_next(arm.withdrawn_after),
        )
        for colour, arm in enumerate(cell.arms)
        if arm.vision is not None
    ]
    return Picture(
        f"vision-attended-batch-{cell.batch}",
        f"Vision tokens that each token attends to, batch {cell.batch}",
        TOKENS,
        "attended",
        "vision tokens",
        "Mean over the layers that hold vision where nothing is withdrawn, and over the answers.",
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
            # What is withdrawn after a token is gone at its point already.
            (arm.withdrawn_after or 0) - 0.5,
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
    first = next((arm.withdrawn_after for arm in arms if arm.withdrawn_after is not None), None)
    uniform = found.vision_share_of_entries
    line = Line(
        "vision tokens",
        1,
        [float(token) for token in range(1, len(found.mass) + 1)],
        [100 * share for share in found.mass],
        [100 * share for share in uniform] if len(uniform) == len(found.mass) else None,
        first,
        _next(first),
    )
    cross_attention = found.measure == "cross-attention"
    layers = f"{len(found.layers)} layer{'' if len(found.layers) == 1 else 's'}"
    says = (
        f"What {layers} of cross-attention add to the stream, as a share of its size"
        if cross_attention
        else f"The share of the attention that goes to vision tokens, mean over heads and {layers}"
    )
    return Picture(
        "attention",
        "What vision adds to each token" if cross_attention else "Attention on vision tokens",
        TOKENS,
        "share added" if cross_attention else "share of attention",
        "%",
        f"{says}, while nothing is withdrawn; a mark shows where the first arm withdraws.",
        [line] if found.mass else [],
        "what uniform attention would give",
    )


def _by_layer(found: AttentionMass) -> Picture:
    # A report with layers that have no figures does not say which they are.
    whole_set = len(found.layers) == len(found.by_layer) > 1
    pairs = list(zip(found.layers, found.by_layer, strict=True)) if whole_set else []
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
    return Picture(
        BY_LAYER,
        f"{whole.title}, by layer",
        TOKENS,
        whole.y_label,
        whole.unit,
        "The same for each layer that was looked at: the stronger the colour, the larger the "
        f"share, up to {max((max(line.ys) for line in lines), default=0.0):.0f} %.",
        lines,
        as_grid=True,
    )


def _next(withdrawn_after: int | None) -> float:
    """Place a mark where the next token is the first without vision."""
    return (withdrawn_after or 0) + 0.5
