"""Attention weights, and logits without vision from a layer on, by the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mvw_cli.adapter import VisionLayout
from mvw_cli.oracle import masked
from mvw_cli.oracle.masked import CrossAttention, masked_logits, vision_columns


def attention_scores(
    model: Any,
    inputs: Mapping[str, Tensor],
    output_ids: Sequence[int],
    layout: VisionLayout,
    hidden: Mapping[int, Tensor],
    layers: Sequence[int],
    rows: Sequence[int],
    *,
    cross_attention: CrossAttention = "skip",
) -> dict[int, Tensor]:
    """Compute the scores that the softmax of chosen rows takes, by layer and head.

    Rows are places in prompt and output, which may be counted from the end. -inf where a column is
    hidden or the model itself does not let the row see it.  # (H, rows, columns) float32
    """
    found: dict[int, Tensor] = {}
    own = masked.own_attention
    chosen = torch.arange(inputs["input_ids"].shape[1] + len(output_ids))[list(rows)]

    def watched(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        layer, run = module.layer_idx, masked._running.get()
        if layer in layers and run.holds(layer):
            places, scale = chosen.to(query.device), options.get("scaling")
            keys = key[0].float().repeat_interleave(query.shape[1] // key.shape[1], dim=0)
            scores = query[0][:, places].float() @ keys.transpose(1, 2)
            scores = scores * (scale or query.shape[-1] ** -0.5)
            seen = (
                torch.ones_like(scores[0], dtype=bool) if mask is None else mask[0, 0][places] >= 0
            )
            if layer in run.without:
                seen = seen & ~run.without[layer][places, None]
            found[layer] = scores.masked_fill(~seen, -torch.inf).cpu()
        return own(module)(module, query, key, value, mask, **options)

    with patch.object(masked, "own_attention", lambda module: watched):
        masked_logits(model, inputs, output_ids, layout, hidden, cross_attention=cross_attention)
    missing = sorted(set(layers) - set(found))
    if missing:
        raise ValueError(f"layers {missing} hold no vision")
    return found


def attention_weights(
    model: Any,
    inputs: Mapping[str, Tensor],
    output_ids: Sequence[int],
    layout: VisionLayout,
    hidden: Mapping[int, Tensor],
    layers: Sequence[int],
    rows: Sequence[int],
    *,
    cross_attention: CrossAttention = "skip",
) -> dict[int, Tensor]:
    """Compute the weights with which rows attend to the vision tokens, mean over the heads.

    Arguments and errors are those of `attention_scores`.

    Returns:
        By layer; 0 where a token is hidden or the model itself does not let the row see it.
        # (rows, N) float32
    """
    scores = attention_scores(
        model, inputs, output_ids, layout, hidden, layers, rows, cross_attention=cross_attention
    )
    # A row without anything to attend to has only -inf.
    weights = {
        layer: own.softmax(dim=-1).nan_to_num(0).mean(dim=0) for layer, own in scores.items()
    }
    return {layer: own[:, vision_columns(layout)] for layer, own in weights.items()}


def logits_withdrawn_at(
    model: Any,
    inputs: Mapping[str, Tensor],
    layout: VisionLayout,
    layer: int,
    output_ids: Sequence[int],
    *,
    cross_attention: CrossAttention = "skip",
) -> Tensor:
    """Compute an output's logits, vision hidden from a layer on as VTW has it: # (T, V)."""
    text = model.config.get_text_config()
    holding = getattr(text, "cross_attention_layers", None) or range(text.num_hidden_layers)
    rows = inputs["input_ids"].shape[1] + len(output_ids)
    everything = torch.ones(rows, layout.vision_tokens, dtype=torch.bool)
    masks = {number: everything for number in holding if number >= layer}
    return masked_logits(model, inputs, output_ids, layout, masks, cross_attention=cross_attention)
