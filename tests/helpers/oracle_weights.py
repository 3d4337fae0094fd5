"""Attention weights, and logits without vision from a layer on, by the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mvw_cli.adapter import VisionLayout
from mvw_cli.oracle.masked import (
    CrossAttention,
    attention_scores,
    masked_logits,
    vision_columns,
)


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
