"""A stand-in for `flash_attn`, written from its documentation: its kernels need CUDA."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mvw_cli.engine import attention


class FlashLibrary(ModuleType):
    """`flash_attn`: all tensors # (B, T, H, D), computed in float32 and rounded at the end."""

    def __init__(self) -> None:
        super().__init__("flash_attn")
        self.calls: list[str] = []
        self.extra = 0
        """A mistake: so many entries of a row's length are not read."""
        self.failure: Exception | None = None
        self.flash_attn_func = self._prefill
        self.flash_attn_with_kvcache = self._decode

    def _prefill(
        self, q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float | None, causal: bool
    ) -> Tensor:
        self.calls.append("prefill")
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
        return self._attend(q, k, v, softmax_scale, seen.tril() if causal else seen)

    def _decode(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        *,
        cache_seqlens: Tensor,
        softmax_scale: float | None,
    ) -> Tensor:
        if self.failure is not None:
            raise self.failure
        self.calls.append("decode")
        assert cache_seqlens.dtype == torch.int32
        assert cache_seqlens.shape == q.shape[:1]
        seen = torch.arange(k_cache.shape[1])[None] < cache_seqlens[:, None] - self.extra
        return self._attend(q, k_cache, v_cache, softmax_scale, seen[:, None, None])

    @staticmethod
    def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None, seen: Tensor) -> Tensor:
        groups = q.shape[2] // k.shape[2]
        wide_q, wide_k, wide_v = (states.transpose(1, 2).float() for states in (q, k, v))
        wide_k, wide_v = (one.repeat_interleave(groups, 1) for one in (wide_k, wide_v))
        scores = wide_q @ wide_k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return (weights @ wide_v).transpose(1, 2).to(q.dtype)


def installed(
    monkeypatch: pytest.MonkeyPatch, obstacle: Callable[[Any], str | None]
) -> FlashLibrary:
    """Let the engine find the stand-in, and let `obstacle` say which models it can't serve."""
    made = FlashLibrary()
    monkeypatch.setitem(sys.modules, "flash_attn", made)
    monkeypatch.setattr(attention, "_flash_obstacle", obstacle)
    return made
