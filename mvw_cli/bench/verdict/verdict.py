"""What measured figures mean, in a few sentences; each claims what its figures show.

What a plan's bounds mean is said in `plan_verdict.py`. One function for one kind of sentence; None
where there is nothing to say. It computes no figure but shares and ratios of those in the report.
"""

from __future__ import annotations

from collections.abc import Iterator

from mvw_cli.bench.documents import BASELINE, NO_IMAGE, Arm, Cell, Report, Workload
from mvw_cli.bench.stats import Ratio
from mvw_cli.bench.verdict.plan_verdict import PREFILL_MATTERS
from mvw_cli.bench.verdict.vision_verdict import acts, reads_less, vision_verdicts
from mvw_cli.text import factor, percent, readable_bytes

EXPLAINED = 0.5
"""Share of a step's time below which bytes and arithmetic are not what it is spent on."""
OTHER_LENGTH = 0.02
"""Relative difference of lengths from which answers are called shorter or longer."""
CLOSE = 0.02
"""Relative room for rounding and calibration before two figures are said to contradict."""


def verdicts(report: Report) -> list[str]:
    """Say what the measured figures mean; empty where nothing was measured."""
    found: list[str | None] = []
    for cell in report.cells:
        baseline = next((arm for arm in cell.arms if arm.name == BASELINE), None)
        if baseline is not None:
            found += [_prefill(cell, baseline), _idle(cell) or _explained(cell, baseline)]
            found.append(_too_fast(cell, baseline))
        for arm in cell.arms:
            if baseline is not None and arm.name not in (BASELINE, NO_IMAGE):
                found += _of_arm(report.workload, cell, arm, baseline)
        found += [_formula(cell, arm) for arm in cell.arms]
    found.append(_cost(report.profiler_cost))
    return list(dict.fromkeys(sentence for sentence in found if sentence))


# -- of a measurement -----------------------------------------------------------------------


def _of_arm(workload: Workload, cell: Cell, arm: Arm, baseline: Arm) -> Iterator[str | None]:
    where = f"{arm.name} at batch {cell.batch}"
    if not acts(arm, baseline):
        yield f"{where} withdrew nothing from its first item: nothing is concluded from it."
        return
    speed = arm.ratios.get("tokens_per_s") or arm.ratios.get("tpot")
    if speed is not None:
        # Other lengths have other positions, for which the bound was not computed.
        bound = arm.bound.speedup if arm.bound and workload.mode == "fixed" else None
        yield _speed(where, speed, bound)
    if workload.mode == "natural":
        yield _length(where, arm, baseline, speed)
    yield _freed(where, arm)
    yield from vision_verdicts(where, arm, baseline, CLOSE)


def _speed(where: str, ratio: Ratio, bound: float | None) -> str:
    measured = f"{factor(ratio.median, ratio.interval_95)}"
    if bound is not None and ratio.interval_95[0] > bound * (1 + CLOSE):
        return (
            f"{where} decodes {measured} as fast, which exceeds the bound of {factor(bound)}: "
            "suspect the measurement, or a step that moves more of the cache than it holds."
        )
    most = "" if bound is None else f"; the bound is {factor(bound)}"
    if ratio.shown == "no difference shown":
        return f"No difference shown in the decode of {where}: {measured}{most}."
    if ratio.shown == "slower":
        return f"{where} decodes slower: {measured}{most}."
    return f"{where} decodes faster: {measured}{most}."


def _length(where: str, arm: Arm, baseline: Arm, speed: Ratio | None) -> str | None:
    mine, theirs = arm.generated_tokens.median, baseline.generated_tokens.median
    answer = arm.ratios.get("answer")
    if not theirs or abs(mine / theirs - 1) < OTHER_LENGTH or answer is None:
        return None
    shorter = mine < theirs
    how = f"{where}: answers are {'shorter' if shorter else 'longer'}, {mine:.0f} tokens for "
    how += f"{theirs:.0f}"
    if answer.shown == "no difference shown":
        return f"{how}; no difference is shown in the seconds of an answer."
    expected = "faster" if shorter else "slower"
    if answer.shown != expected:
        return f"{how}, and yet an answer takes {_seconds(answer)}."
    if speed is not None and speed.shown == expected:
        return f"{how}, and each token is {expected}: both make up the {_seconds(answer)}."
    return f"{how}; this and not speed explains the {_seconds(answer)} of an answer."


def _freed(where: str, arm: Arm) -> str | None:
    before, after = arm.memory.kv_bytes_before, arm.memory.kv_bytes_after
    if not before or after >= before:
        return None
    return (
        f"{where} frees {percent(1 - after / before)} of the KV cache: "
        f"{readable_bytes(before)} become {readable_bytes(after)}."
    )


def _prefill(cell: Cell, baseline: Arm) -> str | None:
    spent, whole = baseline.phases.prefill_ms, baseline.answer_s.median
    if spent is None or not whole:
        return None
    share = min(1.0, spent.median / 1000 / whole)
    if share < PREFILL_MATTERS:
        return None
    said = f"The prefill is {percent(share)} of your request at batch {cell.batch}: "
    if any(reads_less(arm, baseline) for arm in cell.arms):
        return (
            f"{said}withdrawal while decoding can't help there, vision tokens that leave in the "
            "prefill or are not there from the start can."
        )
    return f"{said}withdrawal can't help there, fewer vision tokens from the start can."


def _idle(cell: Cell) -> str | None:
    if cell.device_busy is None or cell.device_busy >= EXPLAINED:
        return None
    return (
        f"Launch-bound: the device is busy {percent(cell.device_busy)} of a step's time at batch "
        f"{cell.batch}. The rest is the host's work, which withdrawal does not shorten."
    )


def _explained(cell: Cell, baseline: Arm) -> str | None:
    share = _share(baseline)
    if share is None or share >= EXPLAINED:
        return None
    return (
        f"Bytes and arithmetic account for {percent(share)} of a step's time at batch "
        f"{cell.batch}: the rest is launches, the host's work or kernels below the device's rates, "
        "and withdrawal does not shorten it."
    )


def _too_fast(cell: Cell, baseline: Arm) -> str | None:
    share = _share(baseline)
    if share is None or share <= 1 + 5 * CLOSE:
        return None
    return (
        f"A step at batch {cell.batch} takes {percent(1 / share)} of the time that its bytes and "
        "arithmetic need at the device's rates: suspect these rates, or caches that hold it all."
    )


def _share(baseline: Arm) -> float | None:
    """What its bound is of the time that a step took; None where either is not known."""
    measured = baseline.tpot_ms.median / 1000
    if baseline.bound is None or baseline.bound.before.seconds is None or not measured:
        return None
    return baseline.bound.before.seconds / measured


def _formula(cell: Cell, arm: Arm) -> str | None:
    memory = arm.memory
    for found, expected, when in (
        (memory.kv_bytes_before, memory.kv_formula_bytes_before, "before"),
        (memory.kv_bytes_after, memory.kv_formula_bytes_after, "after"),
    ):
        if expected is not None and found != expected:
            return (
                f"The KV cache of {arm.name} at batch {cell.batch} has {found:,} bytes {when} the "
                f"withdrawal where the configuration says {expected:,}: suspect the bound."
            )
    return None


def _cost(cost: Ratio | None) -> str | None:
    if cost is None or cost.interval_95[0] <= 1 + CLOSE:
        return None
    return (
        f"With the profiler's marks the decode takes {factor(cost.median, cost.interval_95)} as "
        "long: times of all arms are too long by so much."
    )


# -- words ----------------------------------------------------------------------------------


def _seconds(answer: Ratio) -> str:
    """Word a ratio of rates of whole answers as time."""
    less = 1 / answer.median
    return f"{percent(abs(1 - less))} {'fewer' if less < 1 else 'more'} seconds"
