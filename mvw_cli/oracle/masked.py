"""The masked-attention oracle: what withdrawal has to equal, computed without the engine.

One full forward pass over prompt and output, no cache, in which each row may be kept from each
vision token at each layer. It shares no code with the engine: its own attention registration, the
model's own positions and its own mask (causal, sliding, bidirectional blocks) with what is hidden
laid over it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.utils import ModelOutput

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
    prompt = inputs["input_ids"].shape[1]
    longer = {**extended(model, inputs, output_ids), "use_cache": False}
    with (
        _masked(model, run),
        _without_vision(model, run, cross_attention),
        _growing_rope(model, prompt),
    ):
        logits: Tensor = model(**longer).logits
    return logits[0, prompt - 1 : -1]


def extended(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], output_ids: Sequence[int]
) -> dict[str, Any]:
    """Append the output to every input that runs along the sequence, as the model's own `generate`
    does from token to token."""
    kwargs: dict[str, Any] = {name: one for name, one in inputs.items() if name != "input_ids"}
    for _ in output_ids:
        kwargs = model._update_model_kwargs_for_generation(ModelOutput(), kwargs, False)
    ids = inputs["input_ids"]
    for name, value in kwargs.items():
        # Ernie's, which `generate` leaves away once the image has been read: text is of type 0.
        if name.endswith("token_type_ids") and value.shape[1] == ids.shape[1]:
            tail = value.new_zeros(1, len(output_ids))
            kwargs[name] = torch.cat([value, tail], dim=1)
        # PaliGemma's: what is of type 0 sees all of the prompt, and all of the prompt sees it. What
        # is written is no part of it, though older releases go on with the prompt's last type.
        elif name == "token_type_ids" and model.config.model_type == "paligemma":
            value[:, ids.shape[1] :] = 1
    ids = torch.cat([ids, ids.new_tensor([list(output_ids)])], dim=1)
    prepared: dict[str, Any] = model.prepare_inputs_for_generation(
        ids, is_first_iteration=True, **kwargs
    )
    return {
        name: value for name, value in prepared.items() if value is not None and name != "use_cache"
    }


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
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as the model's file has it, with what is hidden from each row laid over its mask.

    query: # (1, H, rows, D); key, value: # (1, K, columns, D)
    """
    mask = _overlaid(_running.get(), module.layer_idx, query, key, attention_mask)
    attended: tuple[Tensor, Tensor | None] = own_attention(module)(
        module, query, key, value, mask, **options
    )
    return attended


def own_attention(module: Any) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Return the eager function of a module's file: soft caps, sinks and biases are in it."""
    function: Callable[..., tuple[Tensor, Tensor | None]] = vars(
        sys.modules[type(module).__module__]
    )["eager_attention_forward"]
    return function


def _overlaid(
    run: _Pass, layer: int, query: Tensor, key: Tensor, mask: Tensor | None
) -> Tensor | None:
    """Lay what is hidden over what a model adds to its scores: # (1, 1 or H, rows, columns)."""
    hidden, lowest = run.hidden.get(layer), torch.finfo(query.dtype).min
    if mask is not None and mask.dtype == torch.bool:
        mask = query.new_zeros(mask.shape).masked_fill(~mask, lowest)
    if hidden is None or not run.holds(layer) or not len(run.places):
        return mask
    hidden, places = hidden.to(query.device), run.places.to(query.device)
    if mask is None:
        mask = query.new_zeros(1, 1, query.shape[2], key.shape[2])
    mask = mask.clone()
    mask[..., places] = mask[..., places].masked_fill(hidden, lowest)
    if run.cross_layers:
        visible = mask[0, 0] >= 0
        run.without[layer] = hidden.all(dim=1) | ~visible.any(dim=1)
        # Whatever comes out of these rows, it is not used.
        mask = mask.masked_fill(run.without[layer][:, None], 0)
    return mask


@contextmanager
def _growing_rope(model: PreTrainedModel, prompt: int) -> Iterator[None]:
    """Rotate each token by the frequencies of the length at which it was read.

    Where they depend on the length (`dynamic`, `longrope`), the prompt is read at its own, and each
    token that was generated at one more than the token before it.
    """

    def growing(module: Any) -> Callable[..., Any]:
        def forward(x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            ends = [prompt, *range(prompt + 1, position_ids.shape[-1] + 1)]
            starts = [0, *ends]
            phases = []
            for start, end in zip(starts, ends, strict=False):
                # A module made anew has seen nothing longer.
                fresh = type(module)(config=module.config).to(x.device)
                phases.append(fresh(x, position_ids[..., start:end], *args, **kwargs))
            return tuple(torch.cat(parts, dim=-2) for parts in zip(*phases, strict=True))

        return forward

    with ExitStack() as stack:
        for module in model.modules():
            kinds = getattr(module, "rope_type", None) or "default"
            kinds = {*kinds.values()} if isinstance(kinds, dict) else {kinds}
            if any("dynamic" in kind or kind == "longrope" for kind in kinds):
                module.forward = growing(module)
                stack.callback(vars(module).pop, "forward")
        yield


def _mask(**kwargs: Any) -> Tensor | None:
    mask: Tensor | None = eager_mask(**kwargs)
    return mask


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _mask)
