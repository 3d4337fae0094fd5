"""Which models can be served exactly. The others are refused with a sentence, never served wrongly.

Told from the model's configuration and from the cache that transformers makes for it. What only
shows in a forward pass is caught in `attention.py` and `cache.py`.

Exact means: the logits of every token are those of one full forward pass in which the withdrawn
tokens are masked, up to the rounding of a sum in another order (1e-5 in float32). In half precision
that rounding is larger, and a token whose logit ties with another's may fall the other way.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)


class NotExact(Exception):
    """Why a model can't be served exactly, as the end of a sentence."""


def check_architecture(model: Any) -> None:
    """Check what can be told from the model's class and configuration.

    Raises:
        NotExact: with the reason.
    """
    text = model.config.get_text_config()
    if not model.can_generate():
        raise NotExact("it can't generate text")
    if model.config.is_encoder_decoder:
        raise NotExact("it is an encoder-decoder; only decoder-only models are served")
    if "position_ids" not in signature(model.forward).parameters:
        raise NotExact("it takes no position ids, so withdrawal would shift positions")
    kinds = getattr(text, "layer_types", None) or ()
    if "chunked_attention" in kinds:
        raise NotExact("it attends in chunks, which withdrawal would shift")
    sliding_windows(DynamicCache(config=text))


def sliding_windows(prefilled: Cache) -> list[int | None]:
    """Read each layer's sliding window off a cache that transformers made for the model.

    None stands for full attention.

    Raises:
        NotExact: a layer keeps a state that the slots can't hold exactly (recurrent, shared,
            indexed …).
    """
    windows: list[int | None] = []
    for number, layer in enumerate(prefilled.layers):
        if type(layer) is DynamicLayer:
            windows.append(None)
        elif type(layer) is DynamicSlidingWindowLayer:
            windows.append(int(layer.sliding_window))
        else:
            raise NotExact(
                f"layer {number} keeps a {type(layer).__name__}, a state that can't be split into "
                "vision and text"
            )
    return windows
