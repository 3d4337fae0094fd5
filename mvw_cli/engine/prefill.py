"""The prefill of one request: what its policy lets the layers read, and what there is to see.

It runs the model once. What becomes of the cache that comes out is up to `slots.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mvw_cli.engine.layer_exits import Selection, selecting
from mvw_cli.engine.prefill_weights import PrefillWeights, looking
from mvw_cli.engine.prepare import Prepared
from mvw_cli.engine.types import Request
from mvw_cli.engine.vision import Vision, vision_of


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """A prompt that has been read."""

    cache: Any
    """transformers' cache of it, each layer as long as what it has read."""
    logits: Tensor
    """Of the first token.  # (1, V)"""
    vision: Vision
    holding: tuple[int, ...]
    """Layers that hold vision where no policy takes it."""
    weights: PrefillWeights | None
    """What was seen of the attention; None if the policy asks for nothing."""
    sees: bool
    """Whether any layer holds vision."""
    held: Mapping[int, Tensor] | None
    """As `SlotCache.load` takes it; None where all was read everywhere."""


def read_prompt(
    model: Any,
    prepared: Prepared,
    request: Request,
    cross_layers: Sequence[int],
    *,
    keep_mlp: bool,
) -> Read:
    """Run the prefill of a request, its policy choosing among the vision tokens.

    Raises:
        NotExact: the model's layers can't be given a part of the prompt.
    """
    depth = int(model.config.get_text_config().num_hidden_layers)
    vision = vision_of(request.layout, int(prepared.input_ids.shape[1]))
    holding = _holding(vision, depth, cross_layers)
    weights = _watched(request, vision, holding, depth)
    select = request.policy.begin_prefill() if vision.tokens else None
    selection = None if select is None else Selection(vision, select, depth, weights)
    model_inputs = model.prepare_inputs_for_generation(
        prepared.input_ids, is_first_iteration=True, **prepared.model_kwargs
    )
    with ExitStack() as stack:
        stack.enter_context(looking(weights))
        if selection is not None:
            stack.enter_context(selecting(model, selection, cross_layers, keep_mlp=keep_mlp))
        output = model(**model_inputs, return_dict=True)
    return Read(
        cache=output.past_key_values,
        logits=output.logits[:, -1],
        vision=vision,
        holding=holding,
        weights=weights,
        sees=vision.tokens > 0 and (selection is None or selection.left(holding)),
        held=None if selection is None else selection.held(holding),
    )


def present_in(
    indices: Sequence[Tensor], vision: Vision, layers: Sequence[int]
) -> dict[int, Tensor]:
    """Say which vision tokens some layers of the cache hold: # (N,) bool each.

    indices: by layer, as `SlotCache.indices` gives them.
    """
    known: dict[int, Tensor] = {}
    for layer in layers:
        held = indices[layer]
        if id(held) not in known:
            numbers = held if vision.cross_attention else vision.of(held)
            present = torch.zeros(vision.tokens, dtype=torch.bool)
            present[numbers[numbers >= 0]] = True
            known[id(held)] = present
    return {layer: known[id(indices[layer])] for layer in layers}


def _holding(vision: Vision, depth: int, cross_layers: Sequence[int]) -> tuple[int, ...]:
    """List the layers that hold vision without any withdrawal."""
    if not vision.tokens:
        return ()
    if vision.cross_attention:
        return tuple(cross_layers)
    return tuple(one for one in range(depth) if one not in cross_layers)


def _watched(
    request: Request, vision: Vision, holding: tuple[int, ...], depth: int
) -> PrefillWeights | None:
    """Say what is looked at in a prefill."""
    signals = request.policy.signals(holding)
    # Which layers will hold vision is known after the prefill, and one query costs little.
    layers = set(holding) if signals.mass or signals.weights else set()
    for asked in request.policy.prefill_weights(depth):
        earlier = [layer for layer in holding if layer < asked]
        layers |= {max(earlier)} if earlier else set()
    return PrefillWeights(vision, tuple(layers)) if layers else None
