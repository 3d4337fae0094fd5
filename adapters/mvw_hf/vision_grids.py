"""Where the vision tokens of a request lie in its pictures, for the families that tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedConfig

Grids = tuple[tuple[int, int], ...]

_MERGED = ("glm4v", "glm4v_moe", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Model types whose `image_grid_thw` counts the patches before they are merged, and whose merged
tokens go row by row (`get_image_features` of their model files)."""
_SQUARE = {"clip_vision_model": "default", "siglip_vision_model": "full"}
"""Vision towers of LLaVA, and the selection of features that leaves the patches and nothing else:
CLIP's class token comes first and is dropped, SigLIP has none."""
_RESIZERS = ("CLIPImageProcessor", "LlavaImageProcessor", "SiglipImageProcessor")
"""Image processors that resize the whole picture and may pad it before or crop it after."""


def grids_of(
    config: PreTrainedConfig, processor: Any, inputs: Mapping[str, Tensor], tokens: int
) -> Grids | None:
    """Return rows and columns of each image's vision tokens; None where that is not known.

    Args:
        tokens: vision tokens in the prompt.
    """
    settings = getattr(processor, "image_processor", None)
    if not tokens:
        return ()
    if config.model_type in _MERGED and "image_grid_thw" in inputs:
        merge = config.vision_config.spatial_merge_size
        found = merged_grids(inputs["image_grid_thw"], (merge, merge))
    elif config.model_type == "llava" and "pixel_values" in inputs:
        found = _squares(config, len(inputs["pixel_values"]))
    elif config.model_type == "gemma3" and not getattr(settings, "do_pan_and_scan", True):
        # Patches are pooled square by square, and go row by row (`Gemma3MultiModalProjector`).
        side = math.isqrt(config.mm_tokens_per_image)
        found = ((side, side),) * len(inputs["pixel_values"])
    else:
        return None
    return found if sum(rows * columns for rows, columns in found) == tokens else None


def merged_grids(grid: Tensor, merge: tuple[int, int]) -> Grids:
    """Turn frames, rows and columns of patches, # (images, 3), into those of merged tokens."""
    return tuple(
        (frames * rows // merge[0], columns // merge[1]) for frames, rows, columns in grid.tolist()
    )


def _squares(config: PreTrainedConfig, images: int) -> Grids:
    vision = config.vision_config
    if _SQUARE.get(vision.model_type) != config.vision_feature_select_strategy:
        return ()
    side = vision.image_size // vision.patch_size
    return ((side, side),) * images


def areas_of(
    config: PreTrainedConfig, processor: Any, images: Sequence[Image]
) -> list[tuple[float, float, float, float]] | None:
    """Return which part of each picture its grid covers; None where that is not known."""
    if config.model_type != "llava":
        return [(0.0, 0.0, 1.0, 1.0)] * len(images)  # scaled to whole patches, each side for itself
    settings: Any = getattr(processor, "image_processor", None)
    if not type(settings).__name__.startswith(_RESIZERS) or not settings.do_resize:
        return None
    return [_resized(settings, *image.size) for image in images]


def _resized(settings: Any, width: int, height: int) -> tuple[float, float, float, float]:
    """Follow a picture through padding, resizing and cropping."""
    left, top, right, bottom = 0.0, 0.0, float(width), float(height)
    if getattr(settings, "do_pad", False):  # to a square, the picture in its middle
        side = max(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        right, bottom = left + side, top + side
    if getattr(settings, "do_center_crop", False):
        shortest = _side(settings.size, "shortest_edge")
        if shortest is not None:
            wide = high = min(right - left, bottom - top) / shortest
        else:
            wide = (right - left) / settings.size["width"]
            high = (bottom - top) / settings.size["height"]
        wide, high = wide * settings.crop_size["width"], high * settings.crop_size["height"]
        left, top = (left + right - wide) / 2, (top + bottom - high) / 2
        right, bottom = left + wide, top + high
    return left / width, top / height, right / width, bottom / height


def _side(size: Any, name: str) -> int | None:
    value = size.get(name) if hasattr(size, "get") else getattr(size, name, None)
    return None if value is None else int(value)
