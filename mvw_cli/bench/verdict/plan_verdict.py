"""What a plan's bounds mean, in a few sentences; each claims what the bounds show.

One function for one kind of sentence; None where there is nothing to say.
"""

from __future__ import annotations

from mvw_cli.cost.bounds import MATTERS, Plan
from mvw_cli.cost.case import StepBound
from mvw_cli.text import factor, percent, readable_bytes

PREFILL_MATTERS = 0.5
"""Share of a request from which the prefill is what limits it."""


def plan_verdicts(plan: Plan) -> list[str]:
    """Say what a plan's bounds mean."""
    if not plan.vision_tokens:
        return ["There are no vision tokens to withdraw: nothing can become faster."]
    found = (_traffic(plan), _left_out(plan), _matters(plan), _arithmetic(plan), _fits(plan),
             _planned_prefill(plan))  # fmt: skip
    return [sentence for sentence in found if sentence]


def _traffic(plan: Plan) -> str | None:
    if not plan.batches:
        return None
    first, *others = sorted(plan.batches, key=lambda bound: bound.batch)
    share = first.before.weight_bytes / _moved(first.before)
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
        if bound.before.flops / rate > _moved(bound.before) / bandwidth
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


def _moved(step: StepBound) -> int:
    return step.weight_bytes + step.kv_bytes
