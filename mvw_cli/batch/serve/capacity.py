"""How many requests decode at the same time: the number of slots, and the bytes of their cache.

The bytes are what counts; the number is an upper limit. It computes, and measures nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from mvw_cli.cost.shape import DTYPE_BYTES, Shape
from mvw_cli.text import readable_bytes

MARGIN = 0.2
"""Part of the free memory that the cache leaves alone, for activations and the allocator."""
MOST = {"cpu": 16, "mps": 32, "cuda": 256}
"""Slots beyond which a step is taken to cost about as much more as it serves more: on a CPU, where
arithmetic limits early, few; a GPU has room for more rows than memory for their caches. Estimates;
`benchmarks/batch.py --sweep` measures them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be in use at the same time."""

    slots: int
    kv_bytes: int | None = None
    """Bytes that the storages of the cache may take; None: no limit."""
    strict: bool = False
    """Whether a single request must keep to `kv_bytes` too: where a person has said so."""
    reason: str = ""
    """Why, in one line for the user."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one typical item asks for."""

    text_tokens: int
    """Question and template: the prompt without vision tokens."""
    vision_tokens: int
    """In the sequence or, with cross-attention, beside it."""
    new_tokens: int
    """At most."""
    withdrawn_after: int | None
    """Tokens after which vision is withdrawn; None where that is not known beforehand."""


def slot_bytes(shape: Shape, load: Load, dtype: str) -> tuple[int, int]:
    """Bytes of one request's cache entries at their most: while vision is there, and afterwards.

    Where the time of the withdrawal is not known beforehand, the first is the most that it can be.
    """
    size = DTYPE_BYTES[dtype]
    text = load.text_tokens
    seen = load.new_tokens if load.withdrawn_after is None else load.withdrawn_after
    before = shape.kv_elements(text + min(seen, load.new_tokens), load.vision_tokens) * size
    return before, shape.kv_elements(text + load.new_tokens, 0) * size


def unknown_limits(kind: str) -> Limits:
    """What may be in use where the memory that a request takes, or that there is, is not told."""
    most = MOST.get(kind, MOST["cpu"])
    return Limits(most, reason=f"{most} slots, the most for {kind}: its memory is not told")


def choose_limits(
    free_bytes: int | None,
    kind: str,
    *,
    before: int,
    after: int,
    withdraws: bool,
    given: bool = False,
) -> Limits:
    """Choose the number of slots from the memory that is free once the weights are loaded.

    Args:
        free_bytes: of the device; None where it can't be told.
        kind: of the device: `cpu`, `mps` or `cuda`.
        before, after: bytes of a slot at its most, as `slot_bytes` says.
        withdraws: whether the policy withdraws at all.
        given: whether the user has said how many bytes there are, so that none are kept back.
    """
    if free_bytes is None:
        return unknown_limits(kind)
    most = MOST.get(kind, MOST["cpu"])
    budget = free_bytes if given else int(free_bytes * (1 - MARGIN))
    settled = min(before, after) if withdraws else before
    fitting = max(1, budget // max(1, settled))
    slots = min(most, fitting)
    each = f"a slot takes up to {readable_bytes(before)}"
    if withdraws:
        each += f", {readable_bytes(after)} once vision is withdrawn"
    there = f"{readable_bytes(free_bytes)} for the KV cache"
    if not given:
        there = f"{readable_bytes(free_bytes)} free after the weights, {MARGIN:.0%} kept back"
    bound = f"{fitting:,} would fit, {kind} gains nothing beyond {most}"
    return Limits(
        slots,
        kv_bytes=budget,
        reason=f"{slots} slots: {there}; {each}" + (f"; {bound}" if fitting > most else ""),
    )
