"""The picture of quality against speed: what each moment of withdrawal costs and gives.

It does not know how it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable

from mvw_cli.bench.measure.stats import Ratio
from mvw_cli.bench.report.documents import BASELINE, Answers, Cell, Comparison, Mode
from mvw_cli.render.picture import Picture, Point


def quality(cell: Cell, answers: Answers, mode: Mode) -> Picture:
    """Set the answers of each arm against its speed; the picture is empty without two arms."""
    key = "answer" if mode == "natural" else "tokens_per_s"
    name, read, interval = _measure(answers)
    said = {arm.name: arm for arm in answers.arms}
    points = []
    for colour, arm in enumerate(cell.arms):
        ratio = Ratio(1.0, (1.0, 1.0), 0) if arm.name == BASELINE else arm.ratios.get(key)
        reached = read(said[arm.name]) if arm.name in said else None
        if arm.name == BASELINE and reached is None and not answers.references:
            reached = 1.0  # it is the same as itself
        if ratio is None or reached is None:
            continue
        ends = None if arm.name == BASELINE else ratio.interval_95
        bounds = interval(said[arm.name]) if arm.name in said else None
        points.append(
            Point(arm.name, colour, ratio.median, 100 * reached, ends,
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
    if any(arm.same_answer is not None for arm in answers.arms):
        return "same answer", _same, lambda arm: None
    if any(arm.agreement is not None for arm in answers.arms):
        return "same next token", lambda arm: arm.agreement, lambda arm: arm.agreement_interval_95
    return (
        "identical answers",
        lambda arm: arm.identical / arm.items if arm.items else None,
        lambda arm: None,
    )


def _same(arm: Comparison) -> float | None:
    return arm.same_answer / arm.items if arm.same_answer is not None and arm.items else None
