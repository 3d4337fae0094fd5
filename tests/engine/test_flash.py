"""The flash-attn path, on a stand-in for the library written from its documentation.

The real kernels need CUDA. What is checked here is everything around them: which calls go to
flash-attn and which to SDPA, the shapes, the lengths, and that the outcome equals the oracle.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from families import FAMILIES, IMAGE, Family, build
from running import request, run
from torch import Tensor

from mvw_cli.engine import attention
from mvw_cli.oracle.masked import oracle_logits


class StandIn(ModuleType):
    """`flash_attn` as its README describes the two functions: all tensors # (B, T, H, D)."""

    def __init__(self) -> None:
        super().__init__("flash_attn")
        self.calls: list[str] = []

    def flash_attn_func(
        self, q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float | None, causal: bool
    ) -> Tensor:
        self.calls.append("prefill")
        length = q.shape[1]
        seen = torch.ones(length, k.shape[1], dtype=torch.bool).tril() if causal else None
        return self._attend(q, k, v, softmax_scale, seen)

    def flash_attn_with_kvcache(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        *,
        cache_seqlens: Tensor,
        softmax_scale: float | None,
    ) -> Tensor:
        self.calls.append("decode")
        assert cache_seqlens.dtype == torch.int32
        assert cache_seqlens.shape == q.shape[:1]
        seen = torch.arange(k_cache.shape[1])[None] < cache_seqlens[:, None]
        return self._attend(q, k_cache, v_cache, softmax_scale, seen[:, None, None])

    @staticmethod
    def _attend(
        q: Tensor, k: Tensor, v: Tensor, scale: float | None, seen: Tensor | None
    ) -> Tensor:
        groups = q.shape[2] // k.shape[2]
        q, k, v = (states.transpose(1, 2) for states in (q, k, v))
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        scores = (q @ k.transpose(-1, -2)) * scale
        if seen is not None:
            scores = scores.masked_fill(~seen, float("-inf"))
        return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(attention, "_flash_obstacle", lambda model: None)
    return module


def family(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


EXPECTED = {
    # Dense and causal throughout: everything goes to flash-attn.
    "llava": {"prefill", "decode"},
    "qwen2_5_vl": {"prefill", "decode"},
    # Gemma's image tokens see each other, so its prefill needs masks; its sliding layers always do.
    "gemma3": {"decode"},
    # MLA's keys and values differ in width.
    "kimi_text_stack": set(),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_flash_equals_oracle(name: str, stand_in: StandIn) -> None:
    model = build(family(name))
    plan = [(0, 2), (1, 5), (2, None)]
    inputs = {str(seed): family(name).prompt(seed) for seed, _ in plan}
    requests = [
        request(inputs[str(seed)], inputs[str(seed)]["input_ids"][0] == IMAGE, m, name=str(seed))
        for seed, m in plan
    ]
    results = run(model, requests, slots=2, attention="auto")
    assert set(stand_in.calls) == EXPECTED[name]
    for one, (seed, m) in zip(requests, plan, strict=True):
        ids = results[str(seed)].completion.token_ids
        expected = oracle_logits(model, one.inputs, ids, one.layout.entries, m)
        assert (results[str(seed)].logits - expected).abs().max() < 1e-5
