"""Which attention kernel serves a model: the fastest that fits, or why the requested one can't.

It chooses; the kernels themselves are in `attention.py`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from mvw_cli.engine.exact import NotExact


def choose_kernel(model: Any, requested: str) -> str:
    """Choose the attention kernel: the requested one, or for `auto` the fastest that fits.

    flash-attn is taken where it can be imported, the model runs in half precision on a GPU that
    it serves, and supports it; else SDPA; `eager` where the model caps its attention logits.

    Raises:
        NotExact: the requested kernel can't serve this model on this device.
    """
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    obstacle = "it caps its attention logits" if capped else _flash_obstacle(model)
    if requested == "auto":
        if obstacle is None:
            return "flash"
        return "sdpa" if model._supports_sdpa and not capped else "eager"
    if requested == "flash" and obstacle is not None:
        raise NotExact(obstacle)
    if requested == "sdpa" and capped:
        raise NotExact("it caps its attention logits, which SDPA can't do")
    return requested


def _flash_obstacle(model: Any) -> str | None:
    """Say why flash-attn can't be used, or None."""
    if find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    if model.device.type != "cuda":
        return f"flash-attn needs a CUDA device, this is {model.device.type}"
    if model.dtype not in (torch.float16, torch.bfloat16):
        return f"flash-attn needs float16 or bfloat16, this is {model.dtype}"
    if not model._supports_flash_attn:
        return "the model does not support flash-attn"
    # FlashAttention-2 is made for Ampere and later (its README); on AMD there is no such number.
    if torch.version.hip is None and torch.cuda.get_device_capability(model.device) < (8, 0):
        return "flash-attn needs a GPU of compute capability 8.0 or later"
    return _import_problem()


def _import_problem() -> str | None:
    """Say why flash-attn can't be imported, or None; built for another PyTorch, it can't."""
    try:
        import_module("flash_attn")
    except Exception as error:  # it fails in many ways
        first = next(iter(str(error).strip().splitlines()), "")
        return f"flash-attn can't be imported: {type(error).__name__}: {first}"
    return None
