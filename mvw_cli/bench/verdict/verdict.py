"""What the figures of a report mean, in a few sentences; each claims what its figures show.

One function for one kind of sentence; None where there is nothing to say. Nothing is computed but
shares and ratios of what the report holds.
"""

from __future__ import annotations

from collections.abc import Iterator

from mvw_cli.bench.documents import BASELINE, NO_IMAGE, Arm, Cell, ProfileReport, Workload
from mvw_cli.bench.stats import Ratio
from mvw_cli.cost.bounds import MATTERS, Plan
from mvw_cli.text import factor, percent, readable_bytes

PREFILL_MATTERS = 0.5
"""Share of a request from which the prefill is what limits it."""
EXPLAINED = 0.5
"""Share of a step's time below which bytes and arithmetic are not what it is spent on."""
OTHER_LENGTH = 0.02
"""Relative difference of lengths from which answers are called shorter or longer."""
CLOSE = 0.02
"""Relative room for rounding and calibration before two figures are said to contradict."""
_SAME = 1e-9
"""Relative difference up to which means of counts are the same."""


def verdicts(report: ProfileReport) -> list[str]:
    """Write what the measured figures mean; empty where nothing was measured."""
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
    if not _acts(arm, baseline):
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
    yield from _vision_verdicts(where, arm, baseline, CLOSE)


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
    if any(_reads_less(arm, baseline) for arm in cell.arms):
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


def _seconds(answer: Ratio) -> str:
    """Word a ratio of rates of whole answers as time."""
    less = 1 / answer.median
    return f"{percent(abs(1 - less))} {'fewer' if less < 1 else 'more'} seconds"


# -- arms that read, hold or attend to less of the image -------------------------------------


def _acts(arm: Arm, baseline: Arm) -> bool:
    """Whether an arm has withdrawn anything, or looked at less than all."""
    if arm.withdrawn_after is not None:
        return True
    if arm.vision is None or baseline.vision is None:
        return False
    return arm.vision.withdrawals > 0 or _reads_less(arm, baseline) or _looks_less(arm, baseline)


def _reads_less(arm: Arm, baseline: Arm) -> bool:
    """Whether vision tokens have gone in an arm's prefill."""
    if arm.vision is None or baseline.vision is None:
        return False
    return arm.vision.entries_held < baseline.vision.entries_held * (1 - _SAME)


def _vision_verdicts(where: str, arm: Arm, baseline: Arm, room: float) -> Iterator[str | None]:
    """Write what an arm does otherwise than take all vision at once while decoding.

    Args:
        where: how a sentence names the arm.
        room: relative, for rounding and calibration, before two figures contradict.
    """
    if _reads_less(arm, baseline):
        yield _less_prefill(where, arm, baseline, room)
        yield _held(where, arm, baseline)
    yield _kept(where, arm, baseline)
    yield _offloaded(where, arm)


def _looks_less(arm: Arm, baseline: Arm) -> bool:
    assert arm.vision is not None and baseline.vision is not None
    return arm.vision.attended < baseline.vision.attended * (1 - _SAME)


def _less_prefill(where: str, arm: Arm, baseline: Arm, room: float) -> str:
    assert arm.vision is not None and baseline.vision is not None
    fewer = 1 - arm.vision.entries_held / baseline.vision.entries_held
    said = f"{where}: the prefill reads {percent(fewer)} fewer vision entries over its layers"
    bound = arm.bound.prefill if arm.bound else None
    ratio = arm.ratios.get("ttft")
    if bound is not None:
        said += (
            f" and computes {percent(1 - bound.share)} fewer FLOPs: expect the first token at most "
            f"{factor(bound.speedup)} as fast"
        )
    if ratio is None:
        return f"{said}."
    said += f"; measured are {factor(ratio.median, ratio.interval_95)}"
    # Kernels below the device's rates may still profit from all FLOPs that are saved.
    if bound is not None and _exceeds(ratio, max(bound.speedup, 1 / bound.share) * (1 + room)):
        return f"{said}, which exceeds the bound: suspect the measurement."
    return f"{said}, {ratio.shown}."


def _exceeds(ratio: Ratio, most: float) -> bool:
    return ratio.interval_95[0] > most


def _held(where: str, arm: Arm, baseline: Arm) -> str | None:
    mine, theirs = arm.memory.kv_bytes_prefilled, baseline.memory.kv_bytes_prefilled
    if not mine or not theirs or mine >= theirs:
        return None
    return (
        f"{where} has {percent(1 - mine / theirs)} less in the KV cache from the first token on: "
        f"{readable_bytes(mine)} instead of {readable_bytes(theirs)}."
    )


def _kept(where: str, arm: Arm, baseline: Arm) -> str | None:
    """Write of an arm that only attends to less that this frees nothing."""
    if arm.vision is None or baseline.vision is None or arm.vision.withdrawals:
        return None
    if _reads_less(arm, baseline) or not _looks_less(arm, baseline):
        return None
    mine, theirs = arm.vision.attended, baseline.vision.attended
    return (
        f"{where} attends to {percent(mine / theirs)} of the vision tokens in a step, mean over "
        "the layers, and frees nothing: what it does not look at stays in the KV cache."
    )


def _offloaded(where: str, arm: Arm) -> str | None:
    offloaded = arm.memory.host_offloaded_peak_bytes
    if not offloaded:
        return None
    looks = arm.vision.look_backs if arm.vision else 0.0
    how = f"{looks:.2f} times an answer, on average" if looks else "in no answer"
    return f"{where} looks back {how}; up to {readable_bytes(offloaded)} wait for that on the host."


# -- a plan ---------------------------------------------------------------------------------


def plan_verdicts(plan: Plan) -> list[str]:
    """Write what a plan's bounds mean."""
    if not plan.vision_tokens:
        return ["There are no vision tokens to withdraw: nothing can become faster."]
    found = (_traffic(plan), _left_out(plan), _matters(plan), _arithmetic(plan), _fits(plan),
             _planned_prefill(plan))  # fmt: skip
    return [sentence for sentence in found if sentence]


def _traffic(plan: Plan) -> str | None:
    if not plan.batches:
        return None
    first, *others = sorted(plan.batches, key=lambda bound: bound.batch)
    share = first.before.weight_bytes / first.before.bytes_moved
    more = "".join(f"; at batch {b.batch} at most {factor(b.speedup_of_answer)}" for b in others)
    after = f"{plan.withdrawn_after} token{'' if plan.withdrawn_after == 1 else 's'}"
    return (
        f"The weights are {percent(share)} of what a decode step moves at batch {first.batch}: "
        f"expect withdrawal after {after} to make the decode at most "
        f"{factor(first.speedup_of_answer)} as fast{more}."
    )


def _left_out(plan: Plan) -> str | None:
    if not plan.batches:
        return None
    bound = plan.batches[0]
    gone = bound.before.weight_bytes - bound.after.weight_bytes
    if gone <= 0:
        return None
    return (
        f"Withdrawal leaves out {percent(gone / bound.before.weight_bytes)} of the weights too: "
        "cross-attention layers have nothing left to read."
    )


def _matters(plan: Plan) -> str:
    batch, tokens = plan.matters_from_batch, f"{plan.vision_tokens:,} vision tokens"
    needed = [
        f"{count:,} at batch {size}"
        for size, count in sorted(plan.matters_from_vision_tokens.items())
        if count is not None and count > plan.vision_tokens
    ]
    more = f" It would take {', '.join(needed)}." if needed else ""
    gain = percent(MATTERS - 1)
    if batch is None:
        return f"With {tokens} a step can't become {gain} faster at any batch size.{more}"
    if batch == 1:
        return f"With {tokens} a step can become {gain} faster even at batch 1.{more}"
    return (
        f"With {tokens} a step can become {gain} faster at batch {batch}, at no smaller one.{more}"
    )


def _arithmetic(plan: Plan) -> str | None:
    if plan.device is None:
        return None
    rate, bandwidth = plan.device.flops_per_s, plan.device.bandwidth_bytes_per_s
    limited = [
        str(bound.batch)
        for bound in plan.batches
        if bound.before.flops / rate > bound.before.bytes_moved / bandwidth
    ]
    if not limited:
        return None
    return (
        f"At batch {', '.join(limited)} arithmetic limits a step on {plan.device.name}, not what "
        "it moves: a smaller cache counts for less there."
    )


def _fits(plan: Plan) -> str | None:
    before, after = plan.largest_batch_before, plan.largest_batch_after
    if before is None or after is None:
        return None
    if (
        plan.device is not None
        and (plan.device.memory_bytes or plan.weight_bytes) < plan.weight_bytes
    ):
        return (
            f"The weights take {readable_bytes(plan.weight_bytes)}, more than the "
            f"{readable_bytes(plan.device.memory_bytes or 0)} of {plan.device.name}."
        )
    if not after:
        return "Beside the weights there is no room for the cache of one sequence."
    return (
        f"Beside the weights there is room for the caches of {before:,} sequences with their "
        f"vision, of {after:,} without."
    )


def _planned_prefill(plan: Plan) -> str | None:
    one = next((bound for bound in plan.batches if bound.batch == 1), None)
    if one is None or plan.prefill_s is None or one.before.seconds is None:
        return None
    share = plan.prefill_s / (plan.prefill_s + one.before.seconds * (plan.new_tokens - 1))
    if share < PREFILL_MATTERS:
        return None
    return (
        f"By these bounds the prefill is {percent(share)} of a request at batch 1: withdrawal "
        "can't help there, fewer vision tokens from the start can."
    )
