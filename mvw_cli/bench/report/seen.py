"""The section on what arms hold of the image and look at, and the bounds of their prefills.

Shown where arms differ in it. Nothing is computed but shares of what the report holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mvw_cli.bench.report import words
from mvw_cli.bench.report.documents import BASELINE, Arm, Cell, PrefillBound, Report, Vision
from mvw_cli.bench.report.measured import caption
from mvw_cli.render.content import Section, Sentence, Table
from mvw_cli.text import readable_bytes

Column = tuple[str, Callable[[Arm, Vision], str]]
_COLUMNS: list[Column] = [
    ("HELD AFTER THE PREFILL", lambda arm, seen: words.count(round(seen.entries_held, 2))),
    ("KV AFTER THE PREFILL", lambda arm, seen: _bytes(arm.memory.kv_bytes_prefilled)),
    ("WITHDRAWALS", lambda arm, seen: words.count(round(seen.withdrawals, 2))),
    ("LOOK-BACKS", lambda arm, seen: words.count(round(seen.look_backs, 2))),
    (
        "OFFLOADED TO THE HOST",
        lambda arm, seen: readable_bytes(arm.memory.host_offloaded_peak_bytes),
    ),
]
"""Left out where all arms have the same."""


def vision(report: Report) -> Section:
    """Say what each arm holds of the image after the prefill, and attends to on average."""
    parts: list[Table | Sentence] = []
    for cell in report.cells:
        seen = [(arm, arm.vision) for arm in cell.arms if arm.vision is not None]
        rows = [[arm.name, _attended(one, _baseline(cell))] for arm, one in seen]
        if len({row[1] for row in rows}) < 2:
            continue
        columns = ["ARM", "ATTENDED BY A TOKEN"]
        for name, read in _COLUMNS:
            cells = [read(arm, one) for arm, one in seen]
            if len(set(cells)) > 1:
                columns.append(name)
                rows = [[*row, written] for row, written in zip(rows, cells, strict=True)]
        parts.append(Table(columns, rows, caption(cell)))
    if parts:
        parts.append(
            Sentence(
                "Attended are the vision tokens that the query of a generated token sees, mean "
                "over its answer and over the layers that hold vision where nothing is withdrawn. "
                "Held are entries of the KV cache, all layers together; withdrawals are counted "
                "while decoding, by answer."
            )
        )
    return Section("vision", "What is read of the image", parts)


def prefill_bounds(report: Report) -> list[Table | Sentence]:
    """Set the time to the first token beside its bound, where arms act in the prefill."""
    rows = []
    for cell in report.cells:
        bounds = [(arm, arm.bound.prefill) for arm in cell.arms if arm.bound and arm.bound.prefill]
        if any(prefill.share < 1 for _, prefill in bounds):
            rows += [_prefill(cell, arm, prefill) for arm, prefill in bounds if arm.ratios]
    if not rows:
        return []
    columns = ["BATCH", "ARM", "PREFILL COMPUTES", "TAKES AT LEAST", "AT MOST",
               "MEASURED, FIRST TOKEN"]  # fmt: skip
    return [Table(columns, rows, "Prefill: bound and measurement")]


def _prefill(cell: Cell, arm: Arm, bound: PrefillBound) -> list[str]:
    return [
        str(cell.batch),
        arm.name,
        f"{words.scaled(bound.flops, 'FLOP')}  {words.percent(bound.share)} of {BASELINE}'s",
        words.NONE if bound.seconds is None else words.seconds(bound.seconds),
        words.factor(bound.speedup),
        words.ratio(arm.ratios["ttft"]) if "ttft" in arm.ratios else words.NONE,
    ]


def _baseline(cell: Cell) -> Vision | None:
    return next((arm.vision for arm in cell.arms if arm.name == BASELINE), None)


def _attended(seen: Vision, baseline: Vision | None) -> str:
    count = words.count(round(seen.attended, 2))
    if baseline is None or not baseline.attended:
        return count
    return f"{count}  {words.percent(seen.attended / baseline.attended)}"


def _bytes(amount: int | None) -> str:
    return words.NONE if amount is None else readable_bytes(amount)


def differ(arms: Sequence[Arm]) -> bool:
    """Whether some arm attends to part of the vision: neither to all of it, nor to none."""
    found = [arm.vision for arm in arms if arm.vision is not None]
    most = max((max(one.attended_along, default=0.0) for one in found), default=0.0)
    return any(0 < value < most * (1 - 1e-9) for one in found for value in one.attended_along)
