"""A policy's decisions carried out on the cache, and told as events.

It does not know why, nor when: `slots.py` asks the policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

import torch
from torch import Tensor

from mvw_cli.engine.cache import SlotCache
from mvw_cli.engine.sequence import SequenceState
from mvw_cli.engine.types import Restored, Withdrawn
from mvw_cli.engine.vision import Vision
from mvw_cli.policy import Withdraw


def withdraw(cache: SlotCache, sequence: SequenceState, decision: Withdraw) -> Withdrawn:
    """Take vision tokens out of a sequence's slot."""
    slot = sequence.slot
    start = perf_counter()
    before = cache.slot_bytes(slot)
    leaving = sequence.leaving(decision)
    gone = _by_cache_layer(cache, sequence.vision, leaving)
    if decision.offload:
        copies = cache.copied(slot, gone)
        held = sequence.offloaded
        sequence.offloaded = (
            copies
            if held is None
            else [old.with_more(new) for old, new in zip(held, copies, strict=True)]
        )
    stays = any(
        bool((present & ~leaving[layer]).any() if layer in leaving else present.any())
        for layer, present in sequence.present.items()
    )
    entries = cache.withdraw(slot, gone, complete=not stays)
    sequence.lose(leaving)
    _synchronise(sequence.position.device)
    at = perf_counter()
    return Withdrawn(
        sequence.request.id,
        at,
        step=len(sequence.ids),
        vision_tokens=sequence.gone if entries else 0,
        entries=entries,
        kv_bytes_before=before,
        kv_bytes_after=cache.slot_bytes(slot),
        duration_s=at - start,
        complete=not stays,
        offloaded_bytes=sequence.offloaded_bytes,
    )


def restore(cache: SlotCache, sequence: SequenceState) -> Restored:
    """Bring what a sequence has offloaded back into its slot."""
    slot, back = sequence.slot, sequence.offloaded
    assert back is not None
    start = perf_counter()
    before = cache.slot_bytes(slot)
    entries = cache.restore(slot, back)
    sequence.regain(back)
    sequence.offloaded = None
    _synchronise(sequence.position.device)
    at = perf_counter()
    return Restored(
        sequence.request.id,
        at,
        step=len(sequence.ids),
        entries=entries,
        kv_bytes_before=before,
        kv_bytes_after=cache.slot_bytes(slot),
        duration_s=at - start,
    )


def _by_cache_layer(cache: SlotCache, vision: Vision, tokens: Mapping[int, Tensor]) -> list[Tensor]:
    """Write vision tokens, by layer, as the cache wants to hear of them.  tokens: # (N,) bool"""
    nothing = torch.zeros(vision.tokens, dtype=torch.bool)
    known: dict[int, Tensor] = {}
    for one in tokens.values():
        if id(one) not in known:
            known[id(one)] = vision.entries(one)
    return [
        known[id(tokens[layer])] if layer in tokens else nothing
        for layer in range(len(cache.layers))
    ]


def _synchronise(device: torch.device) -> None:
    """Wait for the device, so that a duration covers the work and not only its launch."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
