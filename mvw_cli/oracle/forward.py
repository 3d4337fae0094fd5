"""One forward pass of the oracle: no cache, and each row kept from what is hidden from it.

Shares no code with the engine. It knows where transformers takes attention and masks from, and not
why anything is hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


@dataclass(frozen=True, slots=True)
class Watch:
    """Of which rows the scores are noted, at which layers."""

    layers: frozenset[int]
    rows: Tensor  # (R,) long
    found: dict[int, Tensor] = field(default_factory=dict)
    """By layer; -inf where a row does not see.  # (H, R, columns) float32"""


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one forward pass hides and notes."""

    hidden: Mapping[int, Tensor]  # (rows, N) bool
    places: Tensor  # (N,) long: columns of the vision tokens at the layers that hold them
    cross_layers: frozenset[
        int
    ]  # the cross-attention layers; empty where vision is in the sequence
    watch: Watch | None
    hidden_rows: dict[int, Tensor] = field(default_factory=dict)  # (rows,) bool, by cross layer

    def holds(self, layer: int) -> bool:
        return not self.cross_layers or layer in self.cross_layers


_running: ContextVar[_Pass] = ContextVar("oracle")


def forward(
    model: Any,
    inputs: Mapping[str, Tensor],
    layout: VisionLayout,
    hidden: Mapping[int, Tensor],
    cross_attention: CrossAttention,
    watch: Watch | None = None,
) -> Tensor:
    """Read inputs whose rows are `hidden`'s in one pass; return the logits: # (rows, V).

    Raises:
        ValueError: something hidden has another shape, or lies at a layer that there is not.
    """
    text = model.config.get_text_config()
    shape = (inputs["input_ids"].shape[1], layout.vision_tokens)
    for layer, rows in hidden.items():
        if layer not in range(text.num_hidden_layers) or tuple(rows.shape) != shape:
            raise ValueError(f"{tuple(rows.shape)} hidden at layer {layer}, not {shape} at a layer")
    cross_layers = frozenset(getattr(text, "cross_attention_layers", None) or ())
    run = _Pass(hidden, vision_columns(layout), cross_layers, watch)
    with _masked(model, run), _blind(model, run, cross_attention):
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits[0]


def vision_columns(layout: VisionLayout) -> Tensor:
    """Say which columns are the vision tokens, at the layers that hold them: # (N,) long."""
    entries = layout.entries if layout.cross_entries is None else layout.cross_entries
    return entries.cpu().nonzero()[:, 0]


@contextmanager
def _blind(model: Any, run: _Pass, keep: CrossAttention) -> Iterator[None]:
    """Change the rows of cross-attention layers that see nothing there, and nothing else."""
    handles = []

    def pass_by(layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        rows = run.hidden_rows.get(layer.layer_idx)
        return output if rows is None else torch.where(rows[None, :, None], args[0], output)

    def nothing(attention: Any, args: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        rows = run.hidden_rows.get(attention.layer_idx)
        if rows is None:
            return output
        return output[0].masked_fill(rows[None, :, None], 0), output[1]

    try:
        for number in run.cross_layers:
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
        run.watch.found[layer] = _scores(run, layer, query[0], key[0], visible, scale)
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
    if run.cross_layers:
        run.hidden_rows[layer] = hidden.all(dim=1) | ~visible.any(dim=1)
        visible |= run.hidden_rows[layer][:, None]  # whatever comes out of them, it is not used
    return visible


def _scores(
    run: _Pass, layer: int, query: Tensor, key: Tensor, visible: Tensor, scale: float
) -> Tensor:
    """Score every column for the rows that are watched: # (H, R, columns) float32, on the host."""
    assert run.watch is not None
    rows = run.watch.rows.to(query.device)
    keys = key.float().repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    scores = scale * query[:, rows].float() @ keys.transpose(1, 2)
    seen = visible[rows]
    if layer in run.hidden_rows:
        seen = seen & ~run.hidden_rows[layer][rows, None]
    return scores.masked_fill(~seen, -torch.inf).cpu()


def _mask(**kwargs: Any) -> Tensor | None:
    mask: Tensor | None = sdpa_mask(**{**kwargs, "allow_is_causal_skip": False})
    return mask


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _mask)
