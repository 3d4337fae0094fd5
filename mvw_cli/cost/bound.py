"""The largest speed-up that a withdrawal can give, and where it begins to matter.

Everything follows from a `Case`: bytes that must be moved and products that must be computed. What
is left out (activations, launches, work between the kernels) only makes a speed-up smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mvw_cli.bench.report.documents import ArmBound, BatchBound, Plan, PrefillBound
from mvw_cli.bench.verdict.plan_verdict import plan_verdicts
from mvw_cli.cost import DTYPE_BYTES, weight_bytes
from mvw_cli.cost.attending import Part
from mvw_cli.cost.case import Case, ratio
from mvw_cli.cost.decode_bound import MATTERS

_SAME = 1e-9
"""Relative difference up to which means of counts are the same."""
_ONE_BY_ONE = 256
_MOST_SEQUENCES = 1 << 20
_MOST_VISION = 1 << 24


def arm_bound(
    case: Case, batch: int, withdrawn_after: int | None, part: Part | None = None
) -> ArmBound:
    """Bound one arm of a measurement.

    Args:
        withdrawn_after: tokens generated before the withdrawal; None for an arm that keeps the
            vision to the end, whose speed-up is 1.
        part: of the baseline's vision that the arm has read; where it is not told, all until the
            withdrawal and none after it.
    """
    before, after = case.steps(batch, case.middle)
    if part is None:
        return ArmBound(before, after, case.answer_speedup(batch, withdrawn_after))
    prefill = _prefill_bound(case, part)
    if _all_or_none(part.steps, withdrawn_after):
        return ArmBound(before, after, case.answer_speedup(batch, withdrawn_after), prefill)
    # Which layers lose their last vision token while decoding, nobody tells.
    layers = None if part.withdraws else sum(one > 0 for one in part.prefill) / len(part.prefill)
    fewest = min(part.steps[1:], default=1.0)
    after = case.step_with_part(batch, case.middle, fewest, layers)
    return ArmBound(before, after, case.speedup_with_parts(batch, part.steps, layers), prefill)


def _all_or_none(steps: Sequence[float], withdrawn_after: int | None) -> bool:
    """Whether a step sees all vision until the withdrawal, and none after it."""
    seen = len(steps) if withdrawn_after is None else withdrawn_after
    return all(abs(one - (place < seen)) < _SAME for place, one in enumerate(steps[1:], start=1))


def _prefill_bound(case: Case, part: Part) -> PrefillBound:
    whole, seconds = case.prefill_flops(), case.prefill_seconds()
    if min(part.prefill) >= 1 - _SAME:
        return PrefillBound(whole, 1.0, seconds, 1.0)
    read = [round(one * case.vision_tokens) for one in part.prefill]
    flops, own = case.prefill_flops(read), case.prefill_seconds(read)
    gain = ratio(whole, flops) if seconds is None or own is None else ratio(seconds, own)
    return PrefillBound(flops, flops / whole, own, gain)


def make_plan(
    case: Case,
    batches: Sequence[int],
    withdrawn_after: int,
    *,
    memory_bytes: int | None = None,
) -> Plan:
    """Say what can be said without running anything.

    Args:
        withdrawn_after: tokens generated before the withdrawal.
        memory_bytes: that there are for weights and caches, where not the device's own.
    """
    shape, device = case.shape, case.device
    memory = memory_bytes
    if memory is None and device is not None:
        memory = device.memory_bytes
    held = weight_bytes(shape.weights, case.dtype, case.bits)
    fitting = (None, None) if memory is None else largest_batches(case, memory - held)
    plan = Plan(
        device=device,
        parameters=shape.weights.total,
        weight_bytes=held,
        vision_tokens=case.vision_tokens,
        text_tokens=case.middle,
        new_tokens=case.new_tokens,
        withdrawn_after=withdrawn_after,
        prefill_flops=case.prefill_flops(),
        prefill_s=case.prefill_seconds(),
        batches=[_at(case, batch, withdrawn_after) for batch in batches],
        matters_from_batch=matters_from_batch(case),
        matters_from_vision_tokens={
            batch: matters_from_vision_tokens(case, batch) for batch in batches
        },
        largest_batch_before=fitting[0],
        largest_batch_after=fitting[1],
        verdicts=[],
    )
    return replace(plan, verdicts=plan_verdicts(plan))


def _at(case: Case, batch: int, withdrawn_after: int) -> BatchBound:
    before, after = case.steps(batch, case.middle)
    return BatchBound(
        batch=batch,
        before=before,
        after=after,
        speedup=case.step_speedup(batch),
        speedup_of_answer=case.answer_speedup(batch, withdrawn_after),
    )


def matters_from_batch(case: Case) -> int | None:
    """Find the smallest batch at which a step's bound reaches `MATTERS`; None where none does."""
    return first_reaching(lambda batch: case.step_speedup(batch) >= MATTERS, _MOST_SEQUENCES)


def matters_from_vision_tokens(case: Case, batch: int) -> int | None:
    """Find the fewest vision tokens from which a step's bound does; None where no number does."""
    return first_reaching(
        lambda tokens: case.with_vision(tokens).step_speedup(batch) >= MATTERS, _MOST_VISION
    )


def first_reaching(reaches: Callable[[int], bool], most: int) -> int | None:
    """Find the first count from 1 on that reaches a line, or None up to `most`.

    Up to 256 every count is tried; beyond, what reaches it is taken to do so from one count on.
    """
    for count in range(1, _ONE_BY_ONE + 1):
        if reaches(count):
            return count
    low, high = _ONE_BY_ONE, 2 * _ONE_BY_ONE
    while not reaches(high):
        low, high = high, 2 * high
        if high > most:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def largest_batches(case: Case, free_bytes: int) -> tuple[int, int]:
    """Say how many sequences' caches fit at the end of the answer: with the vision, and without.

    Activations and the allocator's own needs are not kept back. The second is reached where
    sequences come one after another, as in `mvw batch`: each has its vision for the first steps.

    Args:
        free_bytes: beside the weights.
    """
    size = DTYPE_BYTES[case.dtype]
    text = case.question_tokens + max(0, case.new_tokens - 1)  # the last token is never read
    held = case.shape.kv_elements(text, case.vision_tokens) * size
    left = case.shape.kv_elements(text, 0) * size
    free = max(0, free_bytes)
    return int(ratio(free, held)), int(ratio(free, left))
