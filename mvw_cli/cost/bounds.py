"""The largest speed-up that a withdrawal can give, and where it begins to matter.

Everything follows from a `Case`: bytes that must be moved and products that must be computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mvw_cli.cost.case import Case, Device, StepBound, ratio
from mvw_cli.cost.shape import DTYPE_BYTES

MATTERS = 1.1
"""A bound from which withdrawal is taken to matter for speed: a tenth."""
_SAME = 1e-9
"""Relative difference up to which means of counts are the same."""
_ONE_BY_ONE = 256
_MOST_SEQUENCES = 1 << 20
_MOST_VISION = 1 << 24


@dataclass(frozen=True, slots=True)
class VisionShare:
    """The share of the baseline's vision that an arm reads; 1 is all of it."""

    steps: tuple[float, ...]
    """Of each generated token's query, mean over the layers; the first is the prefill's."""
    prefill: tuple[float, ...]
    """Of what each layer reads in the prefill, layer by layer."""


@dataclass(frozen=True, slots=True)
class PrefillBound:
    """What reading a prompt must compute, by the vision tokens that each layer reads."""

    flops: float
    """Of one prompt, vision encoder included."""
    share: float
    """Of the FLOPs of the baseline."""
    seconds: float | None
    """As in `StepBound`."""
    speedup: float
    """The largest speed-up of the time to first token against the baseline: of the seconds, or of
    the FLOPs without a device."""


@dataclass(frozen=True, slots=True)
class ArmBound:
    """Bounds of one arm at one batch, over its whole output."""

    before: StepBound
    """A step with all vision tokens, at the middle of the output."""
    after: StepBound
    """A step without them; where an arm attends to some of them throughout, with the fewest that it
    does."""
    speedup: float
    """The largest speed-up of all decode steps against the baseline, by these bounds."""
    prefill: PrefillBound | None = None


@dataclass(frozen=True, slots=True)
class BatchBound:
    """The bound of withdrawal at one batch size, at the middle of the output."""

    batch: int
    before: StepBound
    after: StepBound
    speedup: float
    """Of a step after the withdrawal against one before."""
    speedup_of_answer: float
    """Of all decode steps of the answer, those before the withdrawal included."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What can be said without running anything."""

    device: Device | None
    parameters: int
    weight_bytes: int
    vision_tokens: int
    text_tokens: int
    """Of question and half of the output."""
    new_tokens: int
    withdrawn_after: int
    prefill_flops: float
    prefill_s: float | None
    batches: list[BatchBound]
    matters_from_batch: int | None
    """The smallest batch at which a step's bound exceeds 1.1."""
    matters_from_vision_tokens: dict[int, int | None]
    """By batch: the fewest vision tokens from which it does; None where no number does."""
    largest_batch_before: int | None
    """Sequences whose caches fit beside the weights."""
    largest_batch_after: int | None
    verdicts: list[str]


def arm_bound(
    case: Case, batch: int, withdrawn_after: int | None, share: VisionShare | None = None
) -> ArmBound:
    """Bound one arm of a measurement.

    Args:
        withdrawn_after: tokens generated before the withdrawal; None for an arm that keeps the
            vision to the end, whose speed-up is 1.
        share: of the baseline's vision that the arm has read; where it is not told, all until the
            withdrawal and none after it.
    """
    before, after = case.steps(batch, case.middle)
    if share is None:
        shares = case.all_until(withdrawn_after)
        return ArmBound(before, after, case.answer_speedup(batch, shares))
    fewest = min(share.steps[1:], default=1.0)
    if fewest < 1 - _SAME:
        after = case.step(batch, case.middle, fewest)
    speedup = case.answer_speedup(batch, share.steps)
    return ArmBound(before, after, speedup, _prefill_bound(case, share))


def _prefill_bound(case: Case, share: VisionShare) -> PrefillBound:
    whole, seconds = case.prefill_flops(), case.prefill_seconds()
    if min(share.prefill) >= 1 - _SAME:
        return PrefillBound(whole, 1.0, seconds, 1.0)
    read = [round(one * case.vision_tokens) for one in share.prefill]
    flops, own = case.prefill_flops(read), case.prefill_seconds(read)
    gain = ratio(whole, flops) if seconds is None or own is None else ratio(seconds, own)
    return PrefillBound(flops, flops / whole, own, gain)


def make_plan(case: Case, batches: Sequence[int], withdrawn_after: int) -> Plan:
    """Bound what can be bounded without running anything."""
    shape, device = case.shape, case.device
    memory = None if device is None else device.memory_bytes
    held = int(shape.weights.total.bytes(case.dtype, case.bits))
    fitting = (None, None) if memory is None else largest_batches(case, memory - held)
    batch_bounds = [
        BatchBound(
            batch,
            *case.steps(batch, case.middle),
            case.step_speedup(batch),
            case.answer_speedup(batch, case.all_until(withdrawn_after)),
        )
        for batch in batches
    ]
    return Plan(
        device=device,
        parameters=int(shape.weights.total.numbers),
        weight_bytes=held,
        vision_tokens=case.vision_tokens,
        text_tokens=case.middle,
        new_tokens=case.new_tokens,
        withdrawn_after=withdrawn_after,
        prefill_flops=case.prefill_flops(),
        prefill_s=case.prefill_seconds(),
        batches=batch_bounds,
        matters_from_batch=matters_from_batch(case),
        matters_from_vision_tokens={
            batch: matters_from_vision_tokens(case, batch) for batch in batches
        },
        largest_batch_before=fitting[0],
        largest_batch_after=fitting[1],
        verdicts=[],
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
    """Compute how many sequences' caches fit at the end of the answer: with vision, and without.

    Activations and the allocator's own needs are not kept back. The second is reached where
    sequences come one after another, as in `mvw batch`: each has its vision for the first steps.
    """
    size = DTYPE_BYTES[case.dtype]
    text = case.question_tokens + max(0, case.new_tokens - 1)  # the last token is never read
    held, left = (case.shape.cache_bytes(text, one, size) for one in (case.vision_tokens, 0))
    free = max(0, free_bytes)
    return int(ratio(free, held)), int(ratio(free, left))
