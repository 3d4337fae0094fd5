"""The attention of a prefill, as policies may see it: that of the last prompt token.

Computed beside the kernel, at the layers that were asked for and for that one query alone. It does
not serve attention: `attention.py` and `cross_attention.py` call it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from mvw_cli.engine.vision import Vision
from mvw_cli.engine.weights import attention_scores, head_mean, share_added

_prefill: ContextVar[PrefillWeights | None] = ContextVar("prefill", default=None)


class PrefillWeights:
    """The last prompt token's attention weights on the vision tokens, by layer.

    Args:
        layers: those to look at.
    """

    def __init__(self, vision: Vision, layers: Sequence[int]) -> None:
        self.found: dict[int, Tensor] = {}
        """# (N,) float32, on the layer's device"""
        self.added: dict[int, Tensor] = {}
        """By cross-attention layer, the part by which it changes the stream: scalars."""
        self.present: Tensor | None = None
        """Which vision tokens the running layer reads; None for all.  # (N,) bool, on the host"""
        self._vision = vision
        self._layers = frozenset(layers)

    def wants(self, number: int | None) -> bool:
        """Whether a layer is looked at."""
        return number in self._layers

    def before(self, number: int) -> Tensor | None:
        """Give the weights of the last layer before this one that was looked at."""
        earlier = [layer for layer in self.found if layer < number]
        return self.found[max(earlier)] if earlier else None

    def see(
        self,
        number: int,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        made: Tensor | None,
        scaling: float | None,
    ) -> None:
        """Take in one attention call.

        query: # (1, H, T, D); key: # (1, K, L, D); mask: # (1, 1, T, L), bool or additive;
        made: # (1, H, T, L), where the kernel has made the weights.
        """
        vision = self._vision
        present = self.present
        if present is None:
            present = torch.ones(vision.tokens, dtype=torch.bool)
        if vision.cross_attention:
            numbers = present.nonzero()[:, 0]
            columns = (vision.places - (~present).cumsum(0))[numbers]  # the layer's states close up
        else:
            rows = (~vision.entries(~present)).nonzero()[:, 0]
            if query.shape[2] != len(rows):
                return  # another module that happens to bear this number
            of = vision.of(rows)
            columns = (of >= 0).nonzero()[:, 0]
            numbers = of[columns]
        if made is not None:
            weights = made[0, :, -1].float().mean(0)
        else:
            visible = None if mask is None else mask[:, :, -1:, : key.shape[2]]
            weights = head_mean(attention_scores(query[:, :, -1:], key, visible, scaling))[0]
        found = torch.zeros(vision.tokens, device=weights.device)
        found[numbers.to(weights.device)] = weights[columns.to(weights.device)]
        self.found[number] = found


@contextmanager
def looking(weights: PrefillWeights | None) -> Iterator[None]:
    """Let attention calls of a prefill inside be seen."""
    token = _prefill.set(weights)
    try:
        yield
    finally:
        _prefill.reset(token)


def looked_at(module: Any) -> PrefillWeights | None:
    """Return who looks at this layer's attention in the prefill that is running, or None."""
    weights = _prefill.get()
    wanted = weights is not None and weights.wants(getattr(module, "layer_idx", None))
    return weights if wanted else None


def note_added(number: int, before: Tensor, output: Tensor) -> None:
    """Note what a cross-attention layer adds to the prompt's last token, if anybody looks.

    before, output: # (1, P, D)
    """
    weights = _prefill.get()
    if weights is not None and weights.wants(number):
        weights.added[number] = share_added(before[0, -1], output[0, -1])
