"""Where in the KV cache does the image lie? Found by changing it, without asking the adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers.cache_utils import Cache

    from mvw_cli.adapter import VisionLayout


def moved_by_the_image(
    model: Any, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> Tensor:
    """Say which prompt entries have other keys or values at the first layer with another image.

    The two inputs are of one question and two images of one size. At the first layer nothing has
    been attended to yet, so an entry changes only with its own embedding.  # (P,) bool
    """
    same = torch.equal(first["input_ids"], second["input_ids"])
    assert same, "two images of one size give different input_ids"
    one, other = (_whole(model, inputs).layers[0] for inputs in (first, second))
    moved = (one.keys != other.keys).any(-1).any(1) | (one.values != other.values).any(-1).any(1)
    changed: Tensor = moved[0].cpu()
    return changed


def count_crossed(model: Any, inputs: Mapping[str, Tensor]) -> int:
    """Count the vision states that each cross-attention layer holds after the prefill."""
    layers = _cross_layers(model)
    return int(prefilled(model, inputs).layers[layers[0]].keys.shape[2]) if layers else 0


def vision_changes(
    model: Any,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    layout: VisionLayout,
) -> Tensor:
    """Say how far each vision token's keys move with the picture, relative to their size.

    At the first layer that holds vision: # (N,) float.
    """
    cross_layers = _cross_layers(model)
    layer = cross_layers[0] if cross_layers else 0
    one, other = (_whole(model, inputs).layers[layer].keys[0] for inputs in (first, second))
    marked = layout.entries if layout.cross_entries is None else layout.cross_entries
    moved: Tensor = (one - other).norm(dim=(0, 2)) / one.norm(dim=(0, 2))  # (P,)
    return moved[marked.to(moved.device)].float().cpu()


def vision_bytes(model: Any, inputs: Mapping[str, Tensor], layout: VisionLayout) -> int:
    """Count the bytes of the vision entries that the engine holds, from a cache of the model's own.

    A sliding layer has let go of the start of the prompt.
    """
    layers, prompt = _cross_layers(model), inputs["input_ids"].shape[1]
    total = 0
    for number, layer in enumerate(prefilled(model, inputs).layers):
        entry = sum(
            states.shape[1] * states.shape[3] * states.element_size()
            for states in (layer.keys, layer.values)
        )
        if number in layers:
            assert layout.cross_entries is not None
            total += int(layout.cross_entries.sum()) * entry
        else:
            total += int(layout.entries[prompt - layer.keys.shape[2] :].sum()) * entry
    return total


@torch.inference_mode()
def prefilled(model: Any, inputs: Mapping[str, Tensor]) -> Cache:
    """Read a prompt; return the cache that transformers makes for the model."""
    cache: Cache = model(**inputs, use_cache=True, return_dict=True).past_key_values
    return cache


@torch.inference_mode()
def _whole(model: Any, inputs: Mapping[str, Tensor]) -> Cache:
    """Read a prompt into a cache that lets go of nothing, sliding windows or not."""
    cache = DynamicCache()
    model(**inputs, past_key_values=cache, use_cache=True)
    return cache


def _cross_layers(model: Any) -> list[int]:
    return list(getattr(model.config.get_text_config(), "cross_attention_layers", None) or ())
