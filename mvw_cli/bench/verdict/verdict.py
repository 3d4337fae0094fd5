"""What the figures of a report mean, in a few sentences; each claims what its figures show.

The sentences are in `templates/`; here is what decides between them.
"""

from __future__ import annotations

from collections.abc import Iterator

from mvw_cli.bench.documents import BASELINE, NO_IMAGE, Arm, Cell, Memory, ProfileReport
from mvw_cli.bench.stats import FEWEST_PAIRS, Ratio
from mvw_cli.cost.bounds import MATTERS, Plan
from mvw_cli.render.jinja import sentences
from mvw_cli.text import factor, plural

PREFILL_MATTERS = 0.5
"""Share of a request from which the prefill is what limits it."""
EXPLAINED = 0.5
"""Share of a step's time below which bytes and arithmetic are not what it is spent on."""
OTHER_LENGTH = 0.02
"""Relative difference of lengths from which answers are called shorter or longer."""
CLOSE = 0.02
"""Relative room for rounding and calibration before two figures are said to contradict."""
MOST_STAGES = 4
"""Stages of a withdrawal that a sentence lists; the JSON has all."""
_SAME = 1e-9
"""Relative difference up to which means of counts are the same."""


def verdicts(report: ProfileReport) -> list[str]:
    """Write what the measured figures mean; empty where nothing was measured."""
    cells = [
        (cell, next((arm for arm in cell.arms if arm.name == BASELINE), None))
        for cell in report.cells
    ]
    return sentences(
        "mvw_cli.bench.verdict",
        "verdict.txt.j2",
        cells=cells,
        mode=report.workload.mode,
        unjudged=(BASELINE, NO_IMAGE),
        PREFILL_MATTERS=PREFILL_MATTERS,
        EXPLAINED=EXPLAINED,
        OTHER_LENGTH=OTHER_LENGTH,
        CLOSE=CLOSE,
        MOST_STAGES=MOST_STAGES,
        prefill_share=_prefill_share,
        explained_share=_explained_share,
        reads_less=_reads_less,
        reads_less_somewhere=_reads_less_somewhere,
        looks_less=_looks_less,
        acts=_acts,
        formula_differs=formula_differs,
        exceeds=_exceeds,
        measured=measured,
    )


def measured(ratio: Ratio) -> str:
    """Write a ratio with its interval; with too few pairs for one, with their number."""
    if ratio.pairs < FEWEST_PAIRS:
        return f"{factor(ratio.median)} (only {plural(ratio.pairs, 'pair')})"
    return factor(ratio.median, ratio.interval_95)


def _exceeds(ratio: Ratio, bound: float) -> bool:
    """Whether a ratio is shown to be above a bound; too few pairs show nothing."""
    return ratio.pairs >= FEWEST_PAIRS and ratio.interval_95[0] > bound * (1 + CLOSE)


def _prefill_share(baseline: Arm) -> float:
    """Share of an answer's time that goes to the prefill; 0 where it was not measured."""
    spent, whole = baseline.phases.prefill_ms, baseline.answer_s.median
    return min(1.0, spent.median / 1000 / whole) if spent is not None and whole else 0.0


def _explained_share(baseline: Arm) -> float | None:
    """What its bound is of the time that a step took; None where either is not known."""
    step_s = baseline.tpot_ms.median / 1000
    if baseline.bound is None or baseline.bound.before.seconds is None or not step_s:
        return None
    return baseline.bound.before.seconds / step_s


def formula_differs(memory: Memory) -> Iterator[tuple[int, int, str]]:
    """Find where the KV cache is not as large as the configuration says, if anywhere."""
    for found, expected, when in (
        (memory.kv_bytes_before, memory.kv_formula_bytes_before, "before"),
        (memory.kv_bytes_after, memory.kv_formula_bytes_after, "after"),
    ):
        if expected is not None and found != expected:
            yield found, expected, when
            return


def _acts(arm: Arm, baseline: Arm) -> bool:
    """Whether an arm has withdrawn anything, or looked at less than all."""
    if arm.withdrawn_after is not None:
        return True
    withdrew = arm.vision is not None and baseline.vision is not None and arm.vision.withdrawals > 0
    return withdrew or _reads_less(arm, baseline) or _looks_less(arm, baseline)


def _reads_less(arm: Arm, baseline: Arm) -> bool:
    """Whether vision tokens have gone in an arm's prefill."""
    if arm.vision is None or baseline.vision is None:
        return False
    return arm.vision.entries_held < baseline.vision.entries_held * (1 - _SAME)


def _reads_less_somewhere(cell: Cell, baseline: Arm) -> bool:
    return any(_reads_less(arm, baseline) for arm in cell.arms)


def _looks_less(arm: Arm, baseline: Arm) -> bool:
    """Whether an arm attends to fewer vision tokens than the baseline does."""
    if arm.vision is None or baseline.vision is None:
        return False
    return arm.vision.attended < baseline.vision.attended * (1 - _SAME)


def plan_verdicts(plan: Plan) -> list[str]:
    """Write what a plan's bounds mean."""
    batches = sorted(plan.batches, key=lambda bound: bound.batch)
    limited = []
    if plan.device is not None:
        rate, bandwidth = plan.device.flops_per_s, plan.device.bandwidth_bytes_per_s
        limited = [
            bound.batch
            for bound in plan.batches
            if bound.before.flops / rate > bound.before.bytes_moved / bandwidth
        ]
    prefill_share, single = 0.0, next((bound for bound in batches if bound.batch == 1), None)
    if single is not None and plan.prefill_s is not None and single.before.seconds is not None:
        decode_s = single.before.seconds * (plan.new_tokens - 1)
        prefill_share = plan.prefill_s / (plan.prefill_s + decode_s)
    needed = [
        (batch, tokens)
        for batch, tokens in sorted(plan.matters_from_vision_tokens.items())
        if tokens is not None and tokens > plan.vision_tokens
    ]
    return sentences(
        "mvw_cli.bench.verdict",
        "plan.txt.j2",
        plan=plan,
        batches=batches,
        limited=limited,
        needed=needed,
        gain=MATTERS - 1,
        prefill_share=prefill_share,
        PREFILL_MATTERS=PREFILL_MATTERS,
    )
