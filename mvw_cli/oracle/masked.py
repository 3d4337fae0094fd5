"""The masked-attention oracle: what withdrawal has to equal, computed without the engine.

One full forward pass over prompt and output, no cache, in which each row may be kept from each
vision token at each layer. It shares no code with the engine: its own attention registration, the
model's own positions and its own mask (causal, sliding, bidirectional blocks) with what is hidden
laid over it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mvw_cli.adapter import VisionLayout

_NAME = "mvw_oracle"

CrossAttention = Literal["skip", "mlp"]


@torch.inference_mode()
def oracle_logits(
    model: PreTrainedModel,
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
        cross_attention: as in `masked_logits`.

    Returns:
        # (T, V): row k is the distribution of token k + 1.
    """
    layout = VisionLayout(vision, _states(model, inputs))
    prompt = inputs["input_ids"].shape[1]
    hidden = torch.zeros(prompt + len(output_ids), layout.vision_tokens, dtype=torch.bool)
    if m is not None:
        hidden[prompt + m - 1 :] = True
    layers = dict.fromkeys(range(model.config.get_text_config().num_hidden_layers), hidden)
    return masked_logits(model, inputs, output_ids, layout, layers, cross_attention=cross_attention)


@torch.inference_mode()
def masked_logits(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    output_ids: Sequence[int],
    layout: VisionLayout,
    hidden: Mapping[int, Tensor],
    *,
    cross_attention: CrossAttention = "skip",
) -> Tensor:
    """Compute the logits of the output with some vision tokens hidden, by layer and by row.

    A row is a place in prompt and output. Args:
        hidden: by layer, True where a row may not attend to a vision token; layers that are not
            named hide nothing, and those that hold no vision have nothing to hide.
            # (P + T, N) bool
        cross_attention: what a row still gets from a cross-attention layer where every vision
            token is hidden, or all that the model itself lets it see: nothing, or its gated MLP.

    Returns:
        # (T, V): row k is the distribution of token k + 1.

    Raises:
        ValueError: something hidden has another shape, or lies at a layer that there is not.
    """
    text = model.config.get_text_config()
    shape = (inputs["input_ids"].shape[1] + len(output_ids), layout.vision_tokens)
    for layer, rows in hidden.items():
        if layer not in range(text.num_hidden_layers) or tuple(rows.shape) != shape:
            raise ValueError(f"{tuple(rows.shape)} hidden at layer {layer}, not {shape} at a layer")
    cross_layers = frozenset(getattr(text, "cross_attention_layers", None) or ())
    run = _Pass(hidden, vision_columns(layout), cross_layers)
    with _masked(model, run), _without_vision(model, run, cross_attention):
        logits: Tensor = model(**extended(inputs, output_ids), use_cache=False).logits
    return logits[0, inputs["input_ids"].shape[1] - 1 : -1]


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


def _states(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Mark the vision states of Mllama that the output may attend to: # (V,) bool."""
    if "cross_attention_mask" not in inputs:
        return None
    vision = model.config.vision_config
    per_tile = (vision.image_size // vision.patch_size) ** 2 + 1  # patches and a class token
    return inputs["cross_attention_mask"][0, -1].bool().flatten().repeat_interleave(per_tile)


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one forward pass hides."""

    hidden: Mapping[int, Tensor]  # (rows, N) bool
    places: Tensor  # (N,) long: columns of the vision tokens at the layers that hold them
    cross_layers: frozenset[int]  # empty where vision is in the sequence
    without: dict[int, Tensor] = field(default_factory=dict)  # (rows,) bool, by cross layer

    def holds(self, layer: int) -> bool:
        return not self.cross_layers or layer in self.cross_layers


_running: ContextVar[_Pass] = ContextVar("oracle")


def vision_columns(layout: VisionLayout) -> Tensor:
    """Return which columns are the vision tokens, at the layers that hold them: # (N,) long."""
    entries = layout.entries if layout.cross_entries is None else layout.cross_entries
    return entries.cpu().nonzero()[:, 0]


@contextmanager
def _without_vision(model: PreTrainedModel, run: _Pass, keep: CrossAttention) -> Iterator[None]:
    """Change the rows of cross-attention layers that see nothing there, and nothing else."""

    def skip(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = run.without.get(layer.layer_idx)
        return output if rows is None else torch.where(rows[None, :, None], args[0], output)

    def attend_to_nothing(
        layer: Any, args: object, output: tuple[Tensor, None]
    ) -> tuple[Tensor, None]:
        rows = run.without.get(layer.layer_idx)
        if rows is None:
            return output
        return output[0].masked_fill(rows[None, :, None], 0), output[1]

    layers = [model.get_decoder().layers[number] for number in run.cross_layers]
    handles = [
        layer.cross_attn.register_forward_hook(attend_to_nothing)
        if keep == "mlp"
        else layer.register_forward_hook(skip)
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _masked(model: PreTrainedModel, run: _Pass) -> Iterator[None]:
    config = model.config
    text = config.get_text_config()
    parts = {"": config, **{key: getattr(config, key, None) for key in config.sub_configs}}
    before = {key: one._attn_implementation for key, one in parts.items() if one is not None}
    text_key = next((key for key in before if key and parts[key] is text), "")
    token = _running.set(run)
    try:
        model.set_attn_implementation({**before, text_key: _NAME})
        yield
    finally:
        model.set_attn_implementation(before)
        _running.reset(token)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend with what is hidden from each row laid over the model's own mask.

    query: # (1, H, rows, D); key, value: # (1, K, columns, D)
    """
    visible = _visible(_running.get(), module.layer_idx, query, key, mask)
    attended: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, visible[None, None], **options
    )
    return attended


def _visible(run: _Pass, layer: int, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Mark which row may attend to which column: # (rows, columns) bool."""
    if mask is None:
        own = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    else:
        own = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] >= 0
    hidden = run.hidden.get(layer)
    if hidden is None or not run.holds(layer) or not len(run.places):
        return own
    hidden, places = hidden.to(own.device), run.places.to(own.device)
    visible = own.clone()
    visible[:, places] &= ~hidden
    if run.cross_layers:
        run.without[layer] = hidden.all(dim=1) | ~visible.any(dim=1)
        visible |= run.without[layer][:, None]  # whatever comes out of them, it is not used
    return visible


def _mask(**kwargs: Any) -> Tensor | None:
    mask: Tensor | None = sdpa_mask(**{**kwargs, "allow_is_causal_skip": False})
    return mask


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _mask)
