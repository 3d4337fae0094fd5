"""Which weights of a model a decode step reads, and which of them can be quantised.

Parameters are told apart by where they lie and what their modules are. It does not know adapters,
and not what a weight costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mvw_cli.cost import Weights


def count_weights(model: Any, text: Any, crossed: tuple[int, ...]) -> Weights:
    """Count the weights of a model.

    Args:
        text: configuration of its language model.
        crossed: numbers of its cross-attention layers.
    """
    import torch

    total = sum(parameter.numel() for parameter in model.parameters())
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    language = {id(p): (name, p) for name, p in decoder.named_parameters()}
    if head is not None:
        language.update((id(p), ("lm_head", p)) for p in head.parameters())
    tied = {id(p) for p in head.parameters()} if head is not None else set()
    looked_up = {id(p) for p in decoder.get_input_embeddings().parameters()} - tied
    counted = {key: one for key, one in language.items() if key not in looked_up}

    linear = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    layers = [decoder.layers[number] for number in crossed]
    # Keys and values of the vision states are in the cache, made once at prefill.
    once, once_linear = _numel(layers, _makes_cache), _numel(layers, _makes_cache, linear)
    routed = sum(p.numel() for name, p in counted.values() if _is_routed(name))
    routed_linear = sum(
        p.numel() for key, (name, p) in counted.items() if _is_routed(name) and key in linear
    )
    counted_linear = sum(p.numel() for key, (_, p) in counted.items() if key in linear)
    experts_total, per_token = _experts(text)
    return Weights(
        total=total,
        vision=total - sum(p.numel() for _, p in language.values()),
        quantizable=_numel([model], _any, linear),
        step=sum(p.numel() for _, p in counted.values()) - routed - once,
        cross=_numel(layers, _any) - once,
        cross_attention=_numel(layers, _reads_cache),
        experts=routed,
        experts_total=experts_total,
        experts_per_token=per_token,
        step_quantizable=counted_linear - routed_linear - once_linear,
        cross_quantizable=_numel(layers, _any, linear) - once_linear,
        cross_attention_quantizable=_numel(layers, _reads_cache, linear),
        experts_quantizable=routed_linear,
    )


def _numel(
    modules: Iterable[Any], chosen: Callable[[str], bool], only: set[int] | None = None
) -> int:
    """Count the parameters of chosen names, those with an id of `only` where that is given."""
    return sum(
        p.numel()
        for module in modules
        for name, p in module.named_parameters()
        if chosen(name) and (only is None or id(p) in only)
    )


def _any(name: str) -> bool:
    return True


def _is_routed(name: str) -> bool:
    return ".experts." in f".{name}"


def _reads_cache(name: str) -> bool:
    return _is_attention(name) and not _makes_cache(name)


def _is_attention(name: str) -> bool:
    return name.startswith(("cross_attn.", "cross_attn_attn_gate", "input_layernorm"))


def _makes_cache(name: str) -> bool:
    return any(f".{part}." in name for part in ("k_proj", "v_proj", "k_norm"))


def _experts(text: Any) -> tuple[int, int]:
    """Say how many routed experts a layer has, and how many of them a token takes."""
    for key in ("n_routed_experts", "num_experts", "num_local_experts"):
        total = getattr(text, key, None)
        if total:
            return int(total), int(text.num_experts_per_tok)
    return 1, 1
