"""The attention kernels: which one serves a model, and the functions registered with transformers.

In a decode step over a `SlotCache` each layer masks by its own slots' lengths and windows; anything
else (a prefill) goes on to the normal kernel. Next to the kernel, `attention_probe.py` sees what a
policy has asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from mvw_cli.engine.attention_probe import StepProbes, record_prefill
from mvw_cli.engine.cache import SlotCache
from mvw_cli.engine.layers import CrossLayer, SharedLayer, SlotLayer
from mvw_cli.engine.rows import Part, Span
from mvw_cli.engine.types import NotExact
from mvw_cli.errors import UsageProblem

_NAMES = {"sdpa": "mvw_sdpa", "eager": "mvw_eager", "flash": "mvw_fa"}
"""Names under which the kernels are registered. transformers takes any name with "flash" in it
for one of its own, which would keep it from making the masks that are needed here."""


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """The decode step that is running."""

    cache: SlotCache
    probes: StepProbes | None = None


decode_step: ContextVar[DecodeStep | None] = ContextVar("decode_step", default=None)
"""The one that is running; None outside of one."""

Attended = tuple[Tensor, Tensor | None]
"""What comes out, # (n, T, H, D), and the weights where the kernel makes them: # (n, H, T, L)."""
Forward = Callable[..., Attended]
AttendedLayer = SlotLayer | SharedLayer | CrossLayer


def choose_kernel(model: PreTrainedModel, requested: str) -> str:
    """Choose the attention kernel: the requested one, or for `auto` the fastest that fits.

    flash-attn is taken where it can be imported, the model runs in half precision on a GPU that
    it serves, and its text model supports it; else SDPA; `eager` where neither computes what the
    text model's own attention does.

    Raises:
        UsageProblem: the requested kernel can't serve this model on this device.
    """
    text = model.get_decoder()  # it attends; the model around it may have been told other things
    own = _own_attention(text)
    obstacle = own or _flash_obstacle(model)
    if requested == "auto":
        if obstacle is None:
            return "flash"
        return "sdpa" if text._supports_sdpa and own is None else "eager"
    if requested == "flash" and obstacle is not None:
        raise _no_kernel(requested, obstacle)
    if requested == "sdpa" and own is not None:
        raise _no_kernel(requested, f"{own}, which SDPA can't do")
    return requested


def _no_kernel(requested: str, cause: str) -> UsageProblem:
    hint = "mvw infer IMAGE QUESTION --attention auto"
    return UsageProblem(f"attention: {requested} is not to be had here", cause=cause, hint=hint)


def _own_attention(text: Any) -> str | None:
    """Return what a text model's attention does beyond SDPA and flash-attn, or None."""
    if getattr(text.config, "attn_logit_softcapping", None) is not None:
        return "it caps its attention logits"
    if any(getattr(module, "sinks", None) is not None for module in text.modules()):
        return "it has attention sinks"
    return None


def _flash_obstacle(model: PreTrainedModel) -> str | None:
    """Return why flash-attn can't be used, or None."""
    if find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    if model.device.type != "cuda":
        return f"flash-attn needs a CUDA device, this is {model.device.type}"
    if model.dtype not in (torch.float16, torch.bfloat16):
        return f"flash-attn needs float16 or bfloat16, this is {model.dtype}"
    if not model.get_decoder()._supports_flash_attn:
        return "the model does not support flash-attn"
    # FlashAttention-2 is made for Ampere and later (its README); on AMD there is no such number.
    if torch.version.hip is None and torch.cuda.get_device_capability(model.device) < (8, 0):
        return "flash-attn needs a GPU of compute capability 8.0 or later"
    try:
        import_module("flash_attn")
    except Exception as error:  # it fails in many ways, if it was built for another PyTorch
        first = next(iter(str(error).strip().splitlines()), "")
        return f"flash-attn can't be imported: {type(error).__name__}: {first}"
    return None


@contextmanager
def attention_kernel(model: PreTrainedModel, kernel: str) -> Iterator[None]:
    """Route the language model's attention through this module; restore it on the way out.

    The vision tower keeps its own implementation.

    Raises:
        NotExact: the model does not take its attention from transformers' interface.
    """
    config = model.config
    text = config.get_text_config()
    parts = {"": config, **{key: getattr(config, key, None) for key in config.sub_configs}}
    before = {key: one._attn_implementation for key, one in parts.items() if one is not None}
    own = next((key for key in before if key and parts[key] is text), "")
    try:
        model.set_attn_implementation({**before, own: _NAMES[kernel]})
        if text._attn_implementation != _NAMES[kernel]:
            raise NotExact("its attention can't be replaced")
        yield
    finally:
        model.set_attn_implementation(before)


def _decode_layer(
    module: nn.Module, query: Tensor, options: dict[str, Any]
) -> AttendedLayer | None:
    """Find the slots that a call attends to; None for a call that is no decode step."""
    step = decode_step.get()
    if step is None:
        return None
    layer: AttendedLayer = step.cache.layers[module.layer_idx]
    if query.shape[2] != 1:
        raise NotExact("it reads more than one token in a decode step")
    window = options.get("sliding_window")
    if window is not None and Span(window) != layer.span:
        raise NotExact(f"layer {module.layer_idx} slides over {window} tokens, its cache does not")
    if options.get("position_bias") is not None:
        raise NotExact("it adds a position bias to its attention")
    return layer


def _by_parts(
    module: Any,
    layer: AttendedLayer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attend: Callable[[Tensor, Part], Attended],
    scaling: float | None,
) -> Attended:
    """Attend each rectangle's rows to it; rows that have nothing to attend to get zeros.

    query: # (n, H, 1, D); returned: # (n, 1, H, D)
    """
    step, number = decode_step.get(), int(module.layer_idx)
    probes = None if step is None else step.probes

    def attend_to(part: Part) -> Attended:
        queries = query[part.first : part.first + len(part.rows)]
        if probes is not None:
            part = probes.narrowed(number, part)
        attended, weights = attend(queries, part)
        if probes is not None:
            probes.record(number, queries, part, weights, scaling)
        lengths = part.lengths
        if 0 in lengths:  # a row of which a policy has left this cross-attention layer nothing
            empty = part.rows.on_device(lengths) == 0
            attended = attended.masked_fill(empty[:, None, None, None], 0.0)
        return attended, weights

    parts, rows = layer.parts(key, value), query.shape[0]
    if len(parts) == 1 and len(parts[0].rows) == rows:
        return attend_to(parts[0])
    output = query.new_zeros(rows, 1, query.shape[1], value.shape[3])
    for part in parts:
        output[part.first : part.first + len(part.rows)] = attend_to(part)[0]
    return output, None


def _masked(forward_of: Callable[[nn.Module], Forward], additive: bool) -> Forward:
    """Attend by a function that takes a mask: bool, True where attended, or `additive`."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kw: Any,
    ) -> Attended:
        forward, scaling = forward_of(module), kw.get("scaling")
        if not additive:
            _check_plain(kw)

        def attend(rows: Tensor, part: Part) -> Attended:
            visible, lowest = part.attendable(), torch.finfo(query.dtype).min
            bias = None if attention_mask is None else _own_bias(attention_mask, part)
            if visible is not None and (additive or bias is not None):
                visible = rows.new_zeros(()).masked_fill(~visible, lowest)
            if bias is not None:
                visible = bias if visible is None else (bias + visible).clamp(min=lowest)
            return forward(module, rows, part.keys, part.values, visible, **kw)

        layer = _decode_layer(module, query, kw)
        if layer is not None:
            if attention_mask is not None:
                layer.join()
            return _by_parts(module, layer, query, key, value, attend, scaling)
        attended = forward(module, query, key, value, attention_mask, **kw)
        record_prefill(module, query, key, attention_mask, attended[1], scaling)
        return attended

    return attention


def _check_plain(options: Mapping[str, Any]) -> None:
    """Refuse what SDPA and flash-attn would leave out without a word.

    Raises:
        NotExact: attention sinks, or capped logits.
    """
    for name, what in (("s_aux", "has attention sinks"), ("softcap", "caps its attention logits")):
        if options.get(name) is not None:
            raise NotExact(f"it {what}, which only its own attention does: attention=eager")


def _own_bias(mask: Tensor, part: Part) -> Tensor:
    """Cut what a model adds to its attention in a decode step to the entries of a part.

    It is Doge that does: its values tell how much each key counts.

    mask: # (n, 1 or H, 1, longest), added to the scores; returned: # (rows, 1 or H, 1, L)

    Raises:
        NotExact: it goes by something other than the entries, or hides some of them.
    """
    longest, heads = part.rows.longest, mask.shape[1]
    own = mask[part.first : part.first + len(part.rows), :, :, :longest]
    if mask.dtype == torch.bool or own.shape != (len(part.rows), heads, 1, longest):
        raise NotExact("it makes a mask of its own in a decode step")
    if part.places is not None:
        places = torch.nn.utils.rnn.pad_sequence(list(part.places), batch_first=True)
        own = own.gather(3, places.to(own.device)[:, None, None].expand(-1, heads, -1, -1))
    if bool((own <= torch.finfo(own.dtype).min / 2).any()):
        raise NotExact("which entries it attends to depends on how many there are")
    return own


def _own_eager(module: nn.Module) -> Forward:
    # Each model file has its own eager function (soft caps, sinks), so take that very one.
    forward = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if forward is None:
        raise NotExact("its file has no eager attention function")
    return cast(Forward, forward)


_sdpa = _masked(lambda module: sdpa_attention_forward, additive=False)
_eager = _masked(_own_eager, additive=True)


def _flash(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kw: Any,
) -> Attended:
    _check_plain(kw)
    scaling = kw.get("scaling")
    layer = _decode_layer(module, query, kw)
    # flash-attn takes no masks and one width for keys and values. Its window counts places in the
    # buffer, not positions, which differ once entries have been withdrawn. SDPA does the rest.
    plain = attention_mask is None and key.shape[-1] == value.shape[-1]
    if layer is not None and plain and layer.span is None:

        def attend(rows: Tensor, part: Part) -> Attended:
            return flash_decode(rows, part, scaling), None

        return _by_parts(module, layer, query, key, value, attend, scaling)
    causal = kw.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    if layer is None and plain and causal and query.shape[2] == key.shape[2]:
        record_prefill(module, query, key, None, None, scaling)
        return flash_prefill(query, key, value, scaling), None
    return _sdpa(module, query, key, value, attention_mask, **kw)


def flash_prefill(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Attend causally.  query: # (B, H, T, D); returned: # (B, T, H, D)"""
    from flash_attn import flash_attn_func

    attended: Tensor = flash_attn_func(
        *(states.transpose(1, 2) for states in (query, key, value)),
        softmax_scale=scale,
        causal=True,
    )
    return attended


def flash_decode(query: Tensor, part: Part, scale: float | None) -> Tensor:
    """Attend each row to its own length.  query: # (n, H, 1, D); returned: # (n, 1, H, D)"""
    from flash_attn import flash_attn_with_kvcache

    attended: Tensor = flash_attn_with_kvcache(
        *(states.transpose(1, 2) for states in (query, part.keys, part.values)),
        cache_seqlens=part.rows.on_device(part.lengths).int(),
        softmax_scale=scale,
    )
    return attended


def _mask_function(normal: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """Skip the model's own mask in a decode step: each layer masks for itself there."""

    def mask(**kwargs: Any) -> Tensor | None:
        return None if decode_step.get() is not None else normal(**kwargs)

    return mask


for _kernel, _function, _normal_mask in (
    ("sdpa", _sdpa, sdpa_mask),
    ("eager", _eager, eager_mask),
    ("flash", _flash, sdpa_mask),
):
    AttentionInterface.register(_NAMES[_kernel], _function)
    AttentionMaskInterface.register(_NAMES[_kernel], _mask_function(_normal_mask))


def tempered_layers(model: nn.Module) -> list[Any]:
    """List the attentions that scale their queries by their place: Llama 4's without rotation."""
    return [
        module
        for module in model.modules()
        if getattr(module, "attn_temperature_tuning", False)
        and not getattr(module, "use_rope", True)
    ]
