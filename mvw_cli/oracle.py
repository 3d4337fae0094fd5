"""The masked-attention oracle: what withdrawal has to equal, computed without the engine.

One full forward pass over prompt and output, no cache, in which each row may be kept from each
vision token at each layer. It shares no code with the engine: its own attention registration, the
model's own positions and its own mask (causal, sliding, bidirectional blocks) with what is hidden
laid over it, and its own softmax where weights are asked for. It does not know policies: which row
is kept from what is the caller's to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mvw_cli.adapter import VisionLayout

_NAME = "mvw_oracle"

CrossAttention = Literal["skip", "mlp"]


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
    prompt, told = _forward(model, inputs, output_ids, layout, hidden, cross_attention)
    logits: Tensor = told.logits
    return logits[0, prompt - 1 : prompt - 1 + len(output_ids)]


@torch.inference_mode()
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

    Args:
        layers: where; cross-attention models have weights at those layers only.
        rows: places in prompt and output, which may be counted from the end.

    The others are those of `masked_logits`.

    Returns:
        By layer; 0 where a token is hidden or the model itself does not let the row see it.
        # (rows, N) float32

    Raises:
        ValueError: as `masked_logits`, or one of the layers holds no vision.
    """
    length = inputs["input_ids"].shape[1] + len(output_ids)
    places = torch.arange(length)[list(rows)]
    found: dict[int, Tensor] = {}
    watch = _Watch(frozenset(layers), places, found)
    _forward(model, inputs, output_ids, layout, hidden, cross_attention, watch)
    missing = sorted(set(layers) - set(found))
    if missing:
        raise ValueError(f"layers {missing} hold no vision")
    return found


@dataclass(frozen=True, slots=True)
class _Watch:
    layers: frozenset[int]
    rows: Tensor  # (R,) long
    found: dict[int, Tensor]  # (R, N)


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one forward pass hides and notes."""

    hidden: Mapping[int, Tensor]  # (P + T, N) bool
    places: Tensor  # (N,) long: columns of the vision tokens at the layers that hold them
    across: frozenset[int]  # the cross-attention layers; empty where vision is in the sequence
    watch: _Watch | None
    blind: dict[int, Tensor] = field(default_factory=dict)  # (P + T,) bool, by cross layer

    def holds(self, layer: int) -> bool:
        return not self.across or layer in self.across


_running: ContextVar[_Pass] = ContextVar("oracle")


def _forward(
    model: Any,
    inputs: Mapping[str, Tensor],
    output_ids: Sequence[int],
    layout: VisionLayout,
    hidden: Mapping[int, Tensor],
    cross_attention: CrossAttention,
    watch: _Watch | None = None,
) -> tuple[int, Any]:
    """Read prompt and output in one pass; return the length of the prompt and what came out."""
    prompt = inputs["input_ids"].shape[1]
    text = model.config.get_text_config()
    shape = (prompt + len(output_ids), layout.vision_tokens)
    for layer, rows in hidden.items():
        if layer not in range(text.num_hidden_layers) or tuple(rows.shape) != shape:
            raise ValueError(f"{tuple(rows.shape)} hidden at layer {layer}, not {shape} at a layer")
    across = frozenset(getattr(text, "cross_attention_layers", None) or ())
    places = layout.cross_entries if across else layout.entries
    nowhere = torch.zeros(0, dtype=torch.long)
    run = _Pass(hidden, nowhere if places is None else places.cpu().nonzero()[:, 0], across, watch)
    with _masked(model, run), _blind(model, run, cross_attention):
        return prompt, model(**_extended(inputs, output_ids), use_cache=False)


def _extended(inputs: Mapping[str, Tensor], output_ids: Sequence[int]) -> dict[str, Tensor]:
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


@contextmanager
def _blind(model: Any, run: _Pass, keep: CrossAttention) -> Iterator[None]:
    """Change the rows of cross-attention layers that see nothing there, and nothing else."""
    handles = []

    def pass_by(layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        rows = run.blind.get(layer.layer_idx)
        return output if rows is None else torch.where(rows[None, :, None], args[0], output)

    def nothing(attention: Any, args: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        rows = run.blind.get(attention.layer_idx)
        if rows is None:
            return output
        return output[0].masked_fill(rows[None, :, None], 0), output[1]

    try:
        for number in run.across:
            layer = model.get_decoder().layers[number]
            if keep == "mlp":
                handles.append(layer.cross_attn.register_forward_hook(nothing))
            else:
                handles.append(layer.register_forward_hook(pass_by))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _masked(model: Any, run: _Pass) -> Iterator[None]:
    config = model.config
    text = config.get_text_config()
    keys = [key for key in config.sub_configs if getattr(config, key, None) is not None]
    before = {key: getattr(config, key)._attn_implementation for key in keys}
    before[""] = config._attn_implementation
    text_key = next((key for key in keys if getattr(config, key) is text), "")
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
    run, layer = _running.get(), module.layer_idx
    visible = _visible(run, layer, query, key, mask)
    if run.watch is not None and layer in run.watch.layers and run.holds(layer):
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        run.watch.found[layer] = _weights(run, layer, query[0], key[0], visible, scale)
    attended: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, visible[None, None], **options
    )
    return attended


def _visible(run: _Pass, layer: int, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Say which row may attend to which column: # (rows, columns) bool."""
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
    if run.across:
        run.blind[layer] = hidden.all(dim=1) | ~visible.any(dim=1)
        visible |= run.blind[layer][:, None]  # whatever comes out of them, it is not used
    return visible


def _weights(
    run: _Pass, layer: int, query: Tensor, key: Tensor, visible: Tensor, scale: float
) -> Tensor:
    """Weigh the vision tokens for the rows that are watched: # (R, N) float32, on the host."""
    assert run.watch is not None
    rows = run.watch.rows.to(query.device)
    keys = key.float().repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    scores = scale * query[:, rows].float() @ keys.transpose(1, 2)  # (H, R, columns)
    weights = scores.masked_fill(~visible[rows], -torch.inf).softmax(dim=-1).mean(dim=0)
    if layer in run.blind:
        weights[run.blind[layer][rows]] = 0
    return weights[:, run.places.to(query.device)].cpu()


def _mask(**kwargs: Any) -> Tensor | None:
    mask: Tensor | None = sdpa_mask(**{**kwargs, "allow_is_causal_skip": False})
    return mask


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _mask)
