"""The masked-attention oracle: what withdrawal has to equal, computed without the engine.

One full forward pass over prompt and output, no cache, in which each row may be kept from each
vision token at each layer. It shares no code with the engine: its own attention registration, the
model's own positions and its own mask (causal, sliding, bidirectional blocks) with what is hidden
laid over it, and its own softmax where weights are asked for. It does not know policies: which row
is kept from what is the caller's to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mvw_cli.adapter import VisionLayout
from mvw_cli.oracle.forward import CrossAttention, Watch, forward, vision_columns


@torch.inference_mode()
def oracle_logits(
    model: Any,
    inputs: Mapping[str, Tensor],
    output_ids: Sequence[int],
    vision: Tensor,
    m: int | None,
    *,
    cross_attention: CrossAttention = "skip",
) -> Tensor:
    """Compute the logits that each output token should have been chosen from.

    Args:
        inputs: model inputs of one prompt, `input_ids` # (1, P).
        output_ids: the T tokens that were generated.
        vision: which prompt entries are vision tokens: # (P,) bool.
        m: withdrawal after this many generated tokens; None for never.
        cross_attention: what a row after the withdrawal still gets from a cross-attention layer:
            nothing, or its gated MLP.

    Returns:
        # (T, V): row k is the distribution of token k + 1.
    """
    layout = VisionLayout(vision, _states(model, inputs))
    rows = inputs["input_ids"].shape[1] + len(output_ids)
    hidden = torch.zeros(rows, layout.vision_tokens, dtype=torch.bool)
    if m is not None:
        hidden[inputs["input_ids"].shape[1] + m - 1 :] = True
    layers = dict.fromkeys(range(model.config.get_text_config().num_hidden_layers), hidden)
    return masked_logits(model, inputs, output_ids, layout, layers, cross_attention=cross_attention)


@torch.inference_mode()
def masked_logits(
    model: Any,
    inputs: Mapping[str, Tensor],
    output_ids: Sequence[int],
    layout: VisionLayout,
    hidden: Mapping[int, Tensor],
    *,
    cross_attention: CrossAttention = "skip",
) -> Tensor:
    """Compute the logits of the output with some vision tokens hidden, by layer and by row.

    A row is a place in prompt and output. One that passes a cross-attention layer with every
    vision token hidden, or all that the model itself lets it see, gets from it what
    `cross_attention` says.

    Args:
        inputs: model inputs of one prompt, `input_ids` # (1, P).
        output_ids: the T tokens that were generated.
        layout: where the N vision tokens are.
        hidden: by layer, True where a row may not attend to a vision token; layers that are not
            named hide nothing, and those that hold no vision have nothing to hide.
            # (P + T, N) bool
        cross_attention: what a row that sees no vision at a cross-attention layer still gets from
            it: nothing, or its gated MLP.

    Returns:
        # (T, V): row k is the distribution of token k + 1.

    Raises:
        ValueError: something hidden has another shape, or lies at a layer that there is not.
    """
    logits = forward(model, extended(inputs, output_ids), layout, hidden, cross_attention)
    return logits[inputs["input_ids"].shape[1] - 1 : -1]


@torch.inference_mode()
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
    """Compute the scores that the softmax of chosen rows takes, by head.

    Args:
        layers: where; cross-attention models have vision at those layers only.
        rows: places in prompt and output, which may be counted from the end.

    The others are those of `masked_logits`.

    Returns:
        By layer; -inf where a column is hidden or the model itself does not let the row see it.
        Columns are places in prompt and output, or vision states.  # (H, rows, columns) float32

    Raises:
        ValueError: as `masked_logits`, or one of the layers holds no vision.
    """
    length = inputs["input_ids"].shape[1] + len(output_ids)
    watch = Watch(frozenset(layers), torch.arange(length)[list(rows)])
    forward(model, extended(inputs, output_ids), layout, hidden, cross_attention, watch)
    missing = sorted(set(layers) - set(watch.found))
    if missing:
        raise ValueError(f"layers {missing} hold no vision")
    return watch.found


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


def extended(inputs: Mapping[str, Tensor], output_ids: Sequence[int]) -> dict[str, Tensor]:
    """Append the output to every input that runs along the sequence; text there has type 0."""
    ids = inputs["input_ids"]
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([ids, ids.new_tensor([list(output_ids)])], dim=1)
    for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            fill = 1 if name == "attention_mask" else 0
            tail = inputs[name].new_full((1, len(output_ids)), fill)
            longer[name] = torch.cat([inputs[name], tail], dim=1)
    if "cross_attention_mask" in inputs:  # (1, P, images, tiles)
        mask = inputs["cross_attention_mask"]
        tail = mask[:, -1:].expand(-1, len(output_ids), -1, -1)
        longer["cross_attention_mask"] = torch.cat([mask, tail], dim=1)
    return longer


def _states(model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Say which vision states of Mllama the output may attend to: # (V,) bool."""
    if "cross_attention_mask" not in inputs:
        return None
    vision = model.config.vision_config
    per_tile = (vision.image_size // vision.patch_size) ** 2 + 1  # patches and a class token
    return inputs["cross_attention_mask"][0, -1].bool().flatten().repeat_interleave(per_tile)
