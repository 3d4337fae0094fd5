"""What `model.generate` would do before its first forward pass, taken from the model itself.

Logits processors, stop tokens, position ids and the fresh cache all come out of transformers'
own preparation, through its public `custom_generate` extension point, so that the engine serves
each model by that model's own rules. It does not run the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mvw_cli.engine.types import GenerationSettings


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as `generate` would start it."""

    input_ids: Tensor  # (1, P)
    processors: Any
    """`LogitsProcessorList`, sampling warpers included."""
    config: Any
    """`GenerationConfig`, complete."""
    model_kwargs: dict[str, Any]
    """Everything for `prepare_inputs_for_generation`, fresh cache and position ids included."""

    @property
    def next_position(self) -> Tensor:
        """Position ids of the token after the prompt.  # (1, 1), or (C, 1, 1) for M-RoPE"""
        position: Tensor = self.model_kwargs["position_ids"][..., -1:]
        return position + 1

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids of the tokens that end the output."""
        ids = self.config.eos_token_id
        if ids is None:
            return frozenset()
        return frozenset([ids] if isinstance(ids, int) else ids)


@torch.inference_mode()
def prepare(model: Any, inputs: Mapping[str, Tensor], settings: GenerationSettings) -> Prepared:
    """Let the model's own `generate` prepare a request, and stop before the first forward."""

    def capture(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Prepared:
        return Prepared(input_ids, logits_processor, generation_config, model_kwargs)

    prepared = model.generate(**inputs, custom_generate=capture, **_overrides(settings))
    assert isinstance(prepared, Prepared)
    return prepared


def _overrides(settings: GenerationSettings) -> dict[str, Any]:
    """Turn settings into `generate` arguments; what is None is left to the model."""
    options: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "num_beams": 1,
        "use_cache": True,
        "return_dict_in_generate": False,
    }
    if settings.temperature == 0:
        options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    else:
        if settings.temperature is not None:
            options |= {"do_sample": True, "temperature": settings.temperature}
        if settings.top_p is not None:
            options |= {"do_sample": True, "top_p": settings.top_p}
        if settings.top_k is not None:
            options |= {"do_sample": True, "top_k": settings.top_k}
    if settings.repetition_penalty is not None:
        options["repetition_penalty"] = settings.repetition_penalty
    if settings.ignore_eos:
        # transformers' own way to a fixed length: the end token is suppressed up to the minimum.
        options["min_new_tokens"] = settings.max_new_tokens
    return options
