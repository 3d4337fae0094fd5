"""The masked-attention oracle: what withdrawal has to equal, computed without the engine.

One full forward pass over prompt and output, no cache, with the vision columns masked in every
row from the m-th generated token on. It shares no code with the engine: its own attention
registration, the model's own positions and its own mask (causal, sliding, bidirectional blocks)
with the withdrawal laid over it. In a cross-attention layer the rows after the withdrawal either
pass by the whole layer or get nothing from its attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "mvw_oracle"


@dataclass(frozen=True, slots=True)
class _Hidden:
    columns: Tensor  # (P,) bool
    first_row: int


_hidden: ContextVar[_Hidden | None] = ContextVar("hidden", default=None)


@torch.inference_mode()
def oracle_logits(
    model: Any,
    inputs: Mapping[str, Tensor],
    output_ids: Sequence[int],
    vision: Tensor,
    m: int | None,
    *,
    cross_attention: Literal["skip", "mlp"] = "skip",
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
    prompt = inputs["input_ids"].shape[1]
    hidden = None if m is None else _Hidden(vision, first_row=prompt + m - 1)
    with _masked(model, hidden), _blind(model, hidden, cross_attention):
        logits: Tensor = model(**_extended(inputs, output_ids), use_cache=False).logits
    return logits[0, prompt - 1 : prompt - 1 + len(output_ids)]


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


@contextmanager
def _blind(model: Any, hidden: _Hidden | None, keep: str) -> Iterator[None]:
    """Change the late rows of Mllama's cross-attention layers, and nothing else."""
    layers = getattr(model.config.get_text_config(), "cross_attention_layers", None) or ()
    handles = []

    def pass_by(layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        assert hidden is not None
        rows = torch.arange(output.shape[1], device=output.device) >= hidden.first_row
        return torch.where(rows[None, :, None], args[0], output)

    def nothing(attention: Any, args: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        assert hidden is not None
        attended = output[0].clone()
        attended[:, hidden.first_row :] = 0
        return attended, output[1]

    try:
        for number in layers if hidden is not None else ():
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
def _masked(model: Any, hidden: _Hidden | None) -> Iterator[None]:
    config = model.config
    text = config.get_text_config()
    keys = [key for key in config.sub_configs if getattr(config, key, None) is not None]
    before = {key: getattr(config, key)._attn_implementation for key in keys}
    before[""] = config._attn_implementation
    text_key = next((key for key in keys if getattr(config, key) is text), "")
    token = _hidden.set(hidden)
    try:
        model.set_attn_implementation({**before, text_key: _NAME})
        yield
    finally:
        model.set_attn_implementation(before)
        _hidden.reset(token)


def _mask(**kwargs: Any) -> Tensor | None:
    mask: Tensor | None = sdpa_mask(**{**kwargs, "allow_is_causal_skip": False})
    hidden = _hidden.get()
    if hidden is None or mask is None:
        return mask
    mask = mask.clone()  # (1, 1, rows, columns), True where attended
    columns = torch.zeros(mask.shape[-1], dtype=torch.bool, device=mask.device)
    columns[: len(hidden.columns)] = hidden.columns.to(mask.device)
    mask[:, :, hidden.first_row :, columns] = False
    return mask


AttentionInterface.register(_NAME, sdpa_attention_forward)
AttentionMaskInterface.register(_NAME, _mask)
