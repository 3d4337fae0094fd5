"""The prefill of one request: prepared as `generate` would, run once, with what its policy drops.

Logits processors, stop tokens, position ids and the fresh cache come out of transformers' own
preparation, so that each model is served by its own rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import Cache

from mvw_cli.engine.attention_probe import PrefillProbe, prefill_probe
from mvw_cli.engine.cache import LayerKind, cache_argument
from mvw_cli.engine.checked_policy import CheckedPolicy
from mvw_cli.engine.layer_exits import Selection, selecting
from mvw_cli.engine.types import GenerationSettings, NotExact, Request
from mvw_cli.engine.vision import Vision, vision_of

_COLDEST = 1e-6
"""Temperature below which only the likeliest token is left, and logits in float32 overflow."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as `generate` would start it."""

    input_ids: Tensor  # (1, P)
    processors: LogitsProcessorList
    """Sampling warpers included."""
    config: GenerationConfig
    model_kwargs: dict[str, Any]
    """Everything for `prepare_inputs_for_generation`, fresh cache and position ids included."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids of the tokens that end the output."""
        ids = self.config.eos_token_id
        if ids is None:
            return frozenset()
        return frozenset([ids] if isinstance(ids, int) else ids)


@torch.inference_mode()
def prepare(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], settings: GenerationSettings
) -> Prepared:
    """Let the model's own `generate` prepare a request, and stop before the first forward.

    Raises:
        NotExact: its `generate` is not that of transformers.
    """

    def capture(
        inner: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: object,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Prepared:
        if inner is not model:
            raise NotExact("its `generate` hands the image on to a language model as embeddings")
        return Prepared(input_ids, logits_processor, generation_config, model_kwargs)

    prepared = model.generate(**inputs, custom_generate=capture, **_overrides(settings))
    if not isinstance(prepared, Prepared):
        raise NotExact("its `generate` does more than to write one token after the other")
    return prepared


def _overrides(settings: GenerationSettings) -> dict[str, Any]:
    """Turn settings into `generate` arguments; what is None is left to the model."""
    options: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "num_beams": 1,
        "use_cache": True,
        "return_dict_in_generate": False,
    }
    if settings.temperature is not None and settings.temperature < _COLDEST:
        options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    else:
        chosen = {name: getattr(settings, name) for name in ("temperature", "top_p", "top_k")}
        given = {name: value for name, value in chosen.items() if value is not None}
        options |= {"do_sample": True, **given} if given else {}
    if settings.repetition_penalty is not None:
        options["repetition_penalty"] = settings.repetition_penalty
    if settings.ignore_eos:
        # transformers' own way to a fixed length: the end token is suppressed up to the minimum.
        options["min_new_tokens"] = settings.max_new_tokens
    return options


@dataclass(frozen=True, slots=True, eq=False)
class PrefillOutput:
    """What a prefill leaves behind."""

    cache: Cache
    """transformers' cache of the prompt, each layer as long as what it has read."""
    next_position: Tensor
    """Position ids of the token after the prompt.  # (1, 1), or (C, 1, 1) for M-RoPE"""
    logits: Tensor
    """Of the first token.  # (1, V)"""
    vision: Vision
    layers: tuple[int, ...]
    """Those that hold vision where no policy takes it."""
    probe: PrefillProbe | None
    """What was seen of the attention; None if the policy asks for nothing."""
    with_vision: bool
    """Whether any layer holds vision."""
    held: Mapping[int, Tensor] | None
    """As `SlotCache.load` takes it; None where all was read everywhere."""
    read: dict[int, Tensor]
    """Which vision tokens each of these layers has read.  # (N,) bool, on the host"""


def run_prefill(
    model: PreTrainedModel,
    prepared: Prepared,
    request: Request,
    kinds: Sequence[LayerKind],
    cross_layers: Sequence[int],
    *,
    keep_mlp: bool,
) -> PrefillOutput:
    """Run the prefill of a request, its policy choosing among the vision tokens.

    Args:
        kinds: what each layer keeps.

    Raises:
        NotExact: the model's layers can't be given a part of the prompt.
        PluginProblem: the policy is at fault.
        UsageProblem: what it takes can't be taken from this model.
    """
    depth = len(kinds)
    vision = vision_of(request.layout, int(prepared.input_ids.shape[1]))
    policy = CheckedPolicy(request.policy)
    layers: tuple[int, ...] = ()
    if vision.tokens:
        of_text = [n for n, kind in enumerate(kinds) if kind.holds and n not in cross_layers]
        layers = tuple(cross_layers if vision.cross_attention else of_text)
    signals = policy.signals(layers)
    # Which layers will hold vision is known after the prefill, and one query costs little.
    probed = set(layers) if signals.mass or signals.weights else set()
    for asked in policy.prefill_weights(depth):
        probed |= set([layer for layer in layers if layer < asked][-1:])
    everything = torch.ones(vision.tokens, dtype=torch.bool)
    probe = None
    if probed:
        probe = PrefillProbe(vision, frozenset(probed), everything)
    select = policy.begin_prefill() if vision.tokens else None
    selection = None if select is None else Selection(vision, select, kinds, probe)
    model_inputs = model.prepare_inputs_for_generation(
        prepared.input_ids, is_first_iteration=True, **prepared.model_kwargs
    )
    token = prefill_probe.set(probe)
    try:
        with (
            selecting(model, selection, cross_layers, keep_mlp=keep_mlp)
            if selection is not None
            else nullcontext()
        ):
            output = model(**model_inputs, return_dict=True)
    finally:
        prefill_probe.reset(token)
    return PrefillOutput(
        cache=getattr(output, cache_argument(model)),
        next_position=_next_position(prepared, model_inputs),
        logits=output.logits[:, -1],
        vision=vision,
        layers=layers,
        probe=probe,
        with_vision=vision.tokens > 0 and (selection is None or selection.left(layers)),
        held=None if selection is None else selection.held(layers),
        read={
            layer: everything if selection is None else selection.by_layer[layer]
            for layer in layers
        },
    )


def _next_position(prepared: Prepared, model_inputs: Mapping[str, Any]) -> Tensor:
    """Count on from what the prefill was given.  # (1, 1), or (C, 1, 1) for M-RoPE

    Raises:
        NotExact: nothing tells from where the model counts.
    """
    # The model's own ids, plus one for each step from here on. An image may take up fewer positions
    # than it has tokens (M-RoPE), so the prompt's length would be wrong, and what `generate` makes
    # is not always what the model is given: PaliGemma counts from 1.
    if "position_ids" not in model_inputs:
        raise NotExact("it takes its positions from the length of its cache")
    given = model_inputs["position_ids"]
    position: Tensor = (prepared.model_kwargs["position_ids"] if given is None else given)[..., -1:]
    return position + 1
