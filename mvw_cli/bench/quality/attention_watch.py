"""Attention weights of one query, beside the kernel that does without them, and their sums.

Exact for what the engine serves: grouped queries, latent attention absorbed or expanded, sliding
windows, and whatever an eager function does to its scores, whose own weights are taken. It does
not serve anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mvw_cli.engine.attention import decoded_cache
from mvw_cli.engine.attention_probe import attention_scores
from mvw_cli.engine.rows import Entries


class Watch:
    """Two figures for each watched layer and token, kept on the layer's device.

    Args:
        layers: numbers of the watched layers.
        tokens: as many are generated at most.
        vision: which prompt entries are vision tokens.  # (P,) bool
        decoder: only calls of its modules count.
    """

    def __init__(
        self, layers: Sequence[int], tokens: int, vision: Tensor, decoder: nn.Module
    ) -> None:
        self._tokens = tokens
        self._vision = vision.cpu()
        self._modules = set(decoder.modules())
        self._kept: dict[int, Tensor | None] = dict.fromkeys(layers)
        """(T, 2) on the layer's device, once it is known."""
        self._seen = dict.fromkeys(layers, 0)
        self._places: dict[tuple[int, bool], Tensor] = {}

    def see(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        weights: Tensor | None,
        scaling: float | None,
    ) -> None:
        """Take in one attention call of a request that is served alone.

        query: # (1, H, T, D); key: # (1, K, L, D); mask: # (1, 1, T, L), bool or additive;
        weights: # (1, H, T, L), where the kernel has made them.
        """
        layer: Any = getattr(module, "layer_idx", None)
        if layer not in self._kept or module not in self._modules:
            return
        cache = decoded_cache()
        if cache is None:
            entry, visible = None, None if mask is None else mask[0, :, -1, : key.shape[2]]
        else:
            held = cache.layers[layer]
            rows = held.with_vision if len(held.with_vision) else held.withdrawn
            entry, attendable = rows.entries[0], rows.attendable()
            visible = None if attendable is None else attendable[0, 0]  # (1, L)
        places = self._vision_places(layer, entry, key.device)
        if weights is None:
            shown = newest_weights(query, key, visible, scaling)
        else:
            shown = weights[0, :, -1].float()
        mass = shown[:, places].sum(-1).mean()
        self.note(layer, mass, _share(places, visible, key.shape[2]))

    def note(self, layer: int, figure: Tensor, uniform: Tensor | float) -> None:
        """Keep a layer's figures of the next token; nothing waits for the device."""
        kept = self._kept[layer]
        if kept is None:
            kept = self._kept[layer] = torch.zeros(self._tokens, 2, device=figure.device)
        kept[self._seen[layer], 0] = figure
        kept[self._seen[layer], 1] = uniform
        self._seen[layer] += 1

    def figures(self) -> tuple[list[list[float]], list[list[float]]]:
        """Fetch what was kept, by layer and token."""
        found = [
            kept[: self._seen[layer]].T.tolist()
            for layer, kept in self._kept.items()
            if kept is not None
        ]
        return [figure for figure, _ in found], [uniform for _, uniform in found]

    def _vision_places(self, layer: int, entry: Entries | None, device: torch.device) -> Tensor:
        """Say which places of a layer's keys hold vision tokens; asked of the host once.

        # (N,) long. A sliding layer has let go of the start of a long prompt after the prefill.
        """
        at = (layer, entry is None)
        if at not in self._places:
            held = self._vision if entry is None else self._vision[entry.kept]
            self._places[at] = held.nonzero()[:, 0].to(device)
        return self._places[at]


def newest_weights(
    query: Tensor, key: Tensor, visible: Tensor | None, scaling: float | None
) -> Tensor:
    """Compute the attention weights of the newest query: # (H, L) float32.

    query: # (1, H, T, D); key: # (1, K, L, D), K dividing H;
    visible: # (1, L) or (H, L), True where attended, or added to the scores.
    """
    shown = None if visible is None else visible[None, :, None]
    return attention_scores(query, key, shown, scaling)[0].softmax(-1)


def _share(places: Tensor, visible: Tensor | None, entries: int) -> Tensor | float:
    """Part of the attended entries that are vision tokens."""
    if visible is None:
        return len(places) / entries
    row = visible[0]
    attended = row if row.dtype == torch.bool else row > torch.finfo(row.dtype).min / 2
    return attended[places].sum() / attended.sum()
