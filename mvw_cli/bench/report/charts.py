"""The charts of a report: what they show, with their units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mvw_cli.bench.documents import (
    BASELINE,
    Answers,
    Arm,
    AttentionMass,
    Cell,
    Mode,
    ProfileReport,
)
from mvw_cli.bench.stats import Ratio
from mvw_cli.render.chart import Chart, Line, Point
from mvw_cli.text import plural

TOKENS = "generated tokens"
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))


def charts(report: ProfileReport) -> Mapping[str, list[Chart]]:
    """Make all charts that the report has figures for, by the section that they belong to."""
    cells, answers, attention = report.cells, report.answers, report.attention
    found = {
        "speed": [_time(cell) for cell in cells],
        "vision": [_attended(cell) for cell in cells if _attends_to_part(cell.arms)],
        "memory": [_kv_cache(cell) for cell in cells],
        "answers": [] if attention is None else [_attention(attention)],
    }
    if answers is not None:
        found["answers"] += [_quality(cell, answers, report.workload.mode) for cell in cells]
    return {
        section: [chart for chart in of_section if chart.lines or chart.points]
        for section, of_section in found.items()
    }


def _line(arm: Arm, colour: int, first: int, ys: list[float]) -> Line:
    """Draw values by token; the mark stands where the next token is the first without vision."""
    after = arm.withdrawn_after
    xs = [float(token) for token in range(first, len(ys) + first)]
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
    along = [value for arm in arms if arm.vision for value in arm.vision.attended_along]
    return any(0 < value < max(along) * (1 - 1e-9) for value in along)


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


def _kv_cache(cell: Cell) -> Chart:
    """Draw the entries of the KV cache in use; behind them the storages that hold them."""
    arms = [(colour, arm) for colour, arm in enumerate(cell.arms) if arm.memory.kv_bytes_along]
    largest = max((max(arm.memory.kv_allocated_along) for _, arm in arms), default=0)
    unit, size = next((pair for pair in _UNITS if largest >= pair[1]), _UNITS[-1])

    def line(colour: int, arm: Arm) -> Line:
        drawn = _line(arm, colour, 1, [value / size for value in arm.memory.kv_bytes_along])
        storages = [value / size for value in arm.memory.kv_allocated_along]
        # What is withdrawn after a token is gone at its place already.
        return replace(drawn, faint=storages, withdrawn_x=drawn.withdrawn_x - 1)

    return Chart(
        f"kv-cache-batch-{cell.batch}",
        f"KV cache along the output, batch {cell.batch}",
        TOKENS,
        "memory",
        unit,
        "Entries of the KV cache that are in use; behind them the storages that hold them.",
        [line(colour, arm) for colour, arm in arms],
        "storages",
    )


def _attention(found: AttentionMass) -> Chart:
    layers = plural(len(found.layers), "layer")
    if found.measure == "cross-attention":
        title, y_label = "What vision adds to each token", "share added"
        what = f"What {layers} of cross-attention add to the stream, as a share of its size"
    else:
        title, y_label = "Attention on vision tokens", "share of attention"
        what = "The share of the attention that goes to vision tokens, "
        what += f"mean over heads and {layers}"
    xs = [float(token) for token in range(1, len(found.mass) + 1)]
    uniform = [100 * share for share in found.vision_share_of_entries]
    mean = Line("vision tokens", 1, xs, [100 * share for share in found.mass], uniform or None)
    return Chart(
        "attention",
        title,
        TOKENS,
        y_label,
        "%",
        f"{what}, while nothing is withdrawn.",
        [mean] if found.mass else [],
        "what uniform attention would give",
    )


def answers_kept(answers: Answers) -> tuple[str, dict[str, int]]:
    """Return the best that is known of the answers, and how many there are of it, by arm.

    Right answers, or else those that come out the same as the baseline's, or identical to them.
    """
    if answers.references:
        name, counts = "right", {arm.name: arm.correct for arm in answers.arms}
    elif any(arm.same_answer is not None for arm in answers.arms):
        name, counts = "same", {arm.name: arm.same_answer for arm in answers.arms}
        counts[BASELINE] = answers.items
    else:
        name, counts = "identical", {arm.name: arm.identical for arm in answers.arms}
    return name, {arm: count for arm, count in counts.items() if count is not None}


def _quality(cell: Cell, answers: Answers, mode: Mode) -> Chart:
    """Set the answers of each arm against its speed; the chart is empty without two arms."""
    speed = "answer" if mode == "natural" else "tokens_per_s"
    name, kept = answers_kept(answers)
    shares = {
        arm: 100 * count / (answers.references or answers.items) for arm, count in kept.items()
    }
    intervals = {arm.name: arm.accuracy_interval_95 for arm in answers.arms}
    points = []
    for colour, arm in enumerate(cell.arms):
        ratio = Ratio(1.0, (1.0, 1.0), 0) if arm.name == BASELINE else arm.ratios.get(speed)
        if ratio is None or arm.name not in shares:
            continue
        across = None if arm.name == BASELINE else ratio.interval_95
        ends = intervals[arm.name] if answers.references else None
        down = None if ends is None else (100 * ends[0], 100 * ends[1])
        points.append(Point(arm.name, colour, ratio.median, shares[arm.name], across, down))
    measured = {arm.name for arm in cell.arms}
    return Chart(
        f"quality-speed-batch-{cell.batch}",
        f"Quality against speed, batch {cell.batch}",
        f"{'answers' if speed == 'answer' else 'tokens'} per second, × {BASELINE}",
        f"{name} answers",
        "%",
        f"Each arm by its speed against {BASELINE} and by its answers, with 95 % intervals.",
        points=points if len(points) > 1 else [],
        reference=next(((arm, y) for arm, y in shares.items() if arm not in measured), None),
    )
