"""Bounds at true shapes, against the arithmetic of their papers' layers, done by hand.

In bfloat16; an image, 128 tokens of question and 1,024 of answer; the middle is at 128 + 512.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
from mvw_hf.model import HuggingFace
from mvw_kimi_vl.model import KimiVL
from mvw_llava_cot.model import LlavaCot

from mvw_cli.adapter import ModelSpec
from mvw_cli.cost.bounds import make_plan
from mvw_cli.cost.case import Case, Device
from mvw_cli.cost.flops import flops_of

QUESTION, NEW, TEXT = 128, 1024, 128 + 512
ADAPTERS: dict[str, Any] = {
    "llava-cot": (LlavaCot, None),
    "kimi-vl": (KimiVL, None),
    "qwen2.5-vl-7b": (HuggingFace, "Qwen/Qwen2.5-VL-7B-Instruct"),
}


@cache
def case(name: str) -> Case:
    kind, model = ADAPTERS[name]
    adapter = kind()
    flops = flops_of(adapter, adapter.shape(ModelSpec(model=model)))
    return Case(flops, "bfloat16", QUESTION, 0, NEW)


@dataclass(frozen=True)
class ByHand:
    """Numbers, not bytes, of a step over `n` sequences; FLOPs of one sequence."""

    weights_before: Callable[[int], float]
    weights_after: Callable[[int], float]
    text_entry: int
    vision_entry: int
    linear: float
    linear_after: float
    at_text: int
    at_vision: int
    """FLOPs of attention at one entry, over all layers."""


def llava_cot() -> ByHand:
    mlp, square, kv = 3 * 4096 * 14336, 2 * 4096 * 4096, 2 * 4096 * 1024
    own = 32 * (square + kv + mlp + 2 * 4096)
    across = 8 * (square + mlp + 2 * 4096 + 128 + 2)  # keys and values are cached
    rest = 128256 * 4096 + 4096
    head = 2 * 32 * (128 + 128)
    return ByHand(
        weights_before=lambda n: own + across + rest,
        weights_after=lambda n: own + rest,
        text_entry=32 * 2 * 8 * 128,
        vision_entry=8 * 2 * 8 * 128,
        linear=2 * (own + across + rest),
        linear_after=2 * (own + rest),
        at_text=32 * head,
        at_vision=8 * head,
    )


def kimi_vl() -> ByHand:
    queries, down, up, out = 2048 * 16 * 192, 2048 * 576, 512 * 16 * 256, 2048 * 2048
    attention = 27 * (queries + down + 512 + up + out + 2 * 2048)
    dense, shared, router = 3 * 2048 * 11264, 26 * 3 * 2048 * 2 * 1408, 26 * 64 * 2048
    always = attention + dense + shared + router + 163840 * 2048 + 2048
    routed = 26 * 64 * 3 * 2048 * 1408
    folded = 27 * 2 * 16 * (512 + 64 + 512)

    def read(n: int) -> float:
        return always + routed * (1 - (1 - 6 / 64) ** n)

    linear = 2 * (always + routed * 6 / 64)
    return ByHand(read, read, 27 * 576, 27 * 576, linear, linear, folded, folded)


def qwen() -> ByHand:
    square, kv, mlp = 2 * 3584 * 3584, 2 * 3584 * 512, 3 * 3584 * 18944
    weights = 28 * (square + kv + mlp + 2 * 3584 + 3584 + 2 * 512) + 152064 * 3584 + 3584
    entry, at = 28 * 2 * 4 * 128, 28 * 2 * 28 * 256
    return ByHand(
        lambda n: weights, lambda n: weights, entry, entry, 2 * weights, 2 * weights, at, at
    )


HANDS = {"llava-cot": llava_cot(), "kimi-vl": kimi_vl(), "qwen2.5-vl-7b": qwen()}
CELLS = [
    (name, batch, vision)
    for name in HANDS
    for batch in (1, 32)
    for vision in ((1601, 6404) if name == "llava-cot" else (1000, 6400))
]


@pytest.mark.parametrize(("name", "batch", "vision"), CELLS)
def test_a_step(name: str, batch: int, vision: int) -> None:
    hand, one = HANDS[name], case(name).with_vision(vision)
    before, after = one.steps(batch, TEXT)
    kv_before = 2 * batch * (TEXT * hand.text_entry + vision * hand.vision_entry)
    kv_after = 2 * batch * TEXT * hand.text_entry
    assert before.weight_bytes == pytest.approx(2 * hand.weights_before(batch), rel=1e-9)
    assert after.weight_bytes == pytest.approx(2 * hand.weights_after(batch), rel=1e-9)
    assert (before.kv_bytes, after.kv_bytes) == (kv_before, kv_after)
    attended = TEXT * hand.at_text + vision * hand.at_vision
    assert before.flops == pytest.approx(batch * (hand.linear + attended), rel=1e-4)
    assert after.flops == pytest.approx(batch * (hand.linear_after + TEXT * hand.at_text), rel=1e-4)
    speedup = (2 * hand.weights_before(batch) + kv_before) / (
        2 * hand.weights_after(batch) + kv_after
    )
    assert one.step_speedup(batch) == pytest.approx(speedup, rel=1e-9)


def prefill_by_hand(name: str, vision: int) -> float:
    """FLOPs: tower and projector, matrices of the language model, its attention, its head once."""
    tokens = QUESTION + vision
    if name == "kimi-vl":
        patches = 4 * vision
        layer = 4 * 1152**2 + 2 * 1152 * 4304
        tower = 2 * patches * (27 * layer + 3 * 14 * 14 * 1152) + 27 * 4 * 1152 * patches**2
        tower += 2 * vision * (4608 * 4608 + 4608 * 2048)
        attention = 27 * 2 * 16 * (192 + 128)
        head = 163840 * 2048
    elif name == "qwen2.5-vl-7b":
        patches = 4 * vision
        layer = 4 * 1280**2 + 3 * 1280 * 3420
        tower = 2 * patches * (32 * layer + 2 * 3 * 14 * 14 * 1280)
        tower += 4 * 1280 * patches * (4 * patches + 28 * 64)  # 4 of 32 layers see everything
        tower += 2 * vision * (5120 * 5120 + 5120 * 3584)
        attention = 28 * 2 * 28 * 256
        head = 152064 * 3584
    else:
        tokens = QUESTION
        states, padded = 4 * 1601, 4 * 1608
        layer = 4 * 1280**2 + 2 * 1280 * 5120
        tower = 2 * padded * 40 * layer + 40 * 4 * 1280 * padded**2
        tower += 2 * 4 * 1600 * 3 * 14 * 14 * 1280 + 2 * states * 7680 * 4096
        tower += 8 * 2 * states * 2 * 4096 * 1024  # keys and values of the states
        tower += 8 * QUESTION * states * 2 * 32 * 256
        attention = 32 * 2 * 32 * 256
        head = 128256 * 4096
    language = (HANDS[name].linear - 2 * head) * tokens + 2 * head
    return tower + language + attention * tokens * (tokens + 1) / 2


@pytest.mark.parametrize(("name", "vision"), sorted({(name, v) for name, _, v in CELLS}))
def test_a_prefill(name: str, vision: int) -> None:
    one = case(name).with_vision(vision)
    assert one.prefill_flops() == pytest.approx(prefill_by_hand(name, vision), rel=1e-3)


H100 = Device("H100 SXM", "published", 3.35e12, 989.4e12, None, 80 * 10**9, "as gpus.py has it")


def test_what_the_shapes_promise_on_an_h100() -> None:
    """Rounded figures, so that a change of the model shows as what it means."""
    found = {}
    for name in HANDS:
        one = replace(case(name).with_vision(6404), device=H100)
        plan = make_plan(one, [1, 8, 32], 16)
        speedups = [round(bound.speedup, 2) for bound in plan.batches]
        fits = (plan.largest_batch_before, plan.largest_batch_after)
        found[name] = (speedups, plan.matters_from_batch, fits)
    assert found == {
        "llava-cot": ([1.24, 1.32, 1.57], 1, (162, 388)),
        "kimi-vl": ([1.04, 1.09, 1.21], 11, (200, 1317)),
        "qwen2.5-vl-7b": ([1.03, 1.2, 1.77], 4, (146, 960)),
    }
