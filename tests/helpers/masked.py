"""VTW by explicit masks: one full forward pass per layer, nothing cut out of anything.

Layers from K on get a mask in which no text row sees a vision column. Rows of vision go on, seen
by nobody. In Mllama, cross-attention layers from K on return what they got.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from mvw_cli.adapter import VisionLayout


@torch.inference_mode()
def masked_logits(
    model: Any, inputs: dict[str, Tensor], layout: VisionLayout, layer: int, tokens: int = 1
) -> Tensor:
    """Logits of the last rows, vision hidden from a layer on: # (tokens, V)."""
    layers = model.get_decoder().layers
    cross_layers = getattr(model.config.get_text_config(), "cross_attention_layers", None) or ()
    vision = layout.entries

    def hide(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        length = len(vision)
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        assert mask.dtype == torch.bool
        mask = mask.clone()
        mask[:, :, (~vision).nonzero(), vision.nonzero()[:, 0]] = False
        return args, {**kwargs, "attention_mask": mask}

    def pass_by(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        return args[0] if args else kwargs["hidden_states"]

    with ExitStack() as stack:
        for number in range(layer, len(layers)):
            one = layers[number]
            if number in cross_layers:
                hook = one.register_forward_hook(pass_by, with_kwargs=True)
            elif not cross_layers:
                hook = one.register_forward_pre_hook(hide, with_kwargs=True)
            else:
                continue
            stack.callback(hook.remove)
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits[0, -tokens:]
