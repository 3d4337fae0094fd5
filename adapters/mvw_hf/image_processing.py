"""How a model's family prepares images: vision tokens by size, and what of a picture they cover.

Image processors of transformers with the settings of each family's published checkpoints. Limits on
the number of pixels or tiles are no part of a model's configuration: they are those that these
checkpoints carry in `preprocessor_config.json`. A checkpoint with other limits, or a processor that
was told others, gives other counts.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from inspect import signature
from typing import Any

import transformers
from PIL.Image import Image
from transformers import BaseImageProcessor, PreTrainedConfig
from transformers.image_processing_utils import select_best_resolution
from transformers.utils import is_torchvision_available

from mvw_cli import BadImage, ModelProblem
from mvw_hf.packages import check_packages

_QWEN3_LIMITS = {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}
"""Source: `preprocessor_config.json` of the Qwen3-VL and Qwen3.5 checkpoints."""
_QWEN2_LIMITS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
"""Source: `preprocessor_config.json` of the Qwen2-VL and Qwen2.5-VL checkpoints."""
_GLM_LIMITS = {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 12288}
"""Source: `preprocessor_config.json` of zai-org/GLM-4.1V-9B-Thinking, and of GLM-4.6V, whose class
of another name does the same. The upper limit counts both frames of a still image."""
_SMOLVLM_TILES = 4
"""Of the longest side, at most. Source: `preprocessor_config.json` of SmolVLM2 checkpoints, where
`size` is so many times `max_image_size` (1536 px and 384 px at 2.2B)."""
_INTERNVL_TILES = 12
"""Source: `max_patches` in `preprocessor_config.json` of the InternVL3 -hf checkpoints."""
_HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_RESIZERS = ("CLIPImageProcessor", "LlavaImageProcessor", "SiglipImageProcessor")
"""Image processors that resize the whole picture and may pad it before or crop it after."""

_MERGED: dict[str, tuple[str, dict[str, Any]]] = {
    "glm4v": ("Glm4vImageProcessorPil", {"size": _GLM_LIMITS}),
    "glm4v_moe": ("Glm4vImageProcessorPil", {"size": _GLM_LIMITS}),
    "qwen2_vl": ("Qwen2VLImageProcessorPil", {"size": _QWEN2_LIMITS}),
    "qwen2_5_vl": ("Qwen2VLImageProcessorPil", {"size": _QWEN2_LIMITS}),
    "qwen3_vl": ("Qwen2VLImageProcessorPil", {"size": _QWEN3_LIMITS, **_HALVES}),
    "qwen3_vl_moe": ("Qwen2VLImageProcessorPil", {"size": _QWEN3_LIMITS, **_HALVES}),
    "qwen3_5": ("Qwen2VLImageProcessorPil", {"size": _QWEN3_LIMITS, **_HALVES}),
    "qwen3_5_moe": ("Qwen2VLImageProcessorPil", {"size": _QWEN3_LIMITS, **_HALVES}),
}
"""Families that keep the aspect ratio and merge patches side by side: the class of transformers,
and its settings besides those of the model's configuration."""
_OTHERS = (
    *("gemma3", "gemma4", "internvl", "llava", "llava_onevision", "minicpmv4_6", "molmo2"),
    "smolvlm",
)


def image_processor(config: PreTrainedConfig) -> BaseImageProcessor | None:
    """Make the image processor of a model's family; None where the family is not known here.

    Raises:
        ModelProblem: there is none without torchvision, which is missing.
    """
    family = config.model_type
    if family not in (*_MERGED, *_OTHERS):
        return None
    vision = config.vision_config
    # transformers imports the class of a family when it is asked for by name.
    if family in _MERGED:
        name, settings = _MERGED[family]
        return getattr(transformers, name)(
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
            **settings,
        )
    if family == "gemma4":
        return transformers.Gemma4ImageProcessorPil(
            patch_size=vision.patch_size,
            pooling_kernel_size=vision.pooling_kernel_size,
            max_soft_tokens=config.vision_soft_tokens_per_image,
        )
    if family == "minicpmv4_6":  # slices of 448 px, up to nine of them: the defaults
        return transformers.MiniCPMV4_6ImageProcessorPil(patch_size=vision.patch_size, **_HALVES)
    if family == "molmo2":
        check_packages("Molmo 2", [] if is_torchvision_available() else ["torchvision"])
        return _molmo2(config)
    if family == "smolvlm":
        tile = vision.image_size
        return transformers.SmolVLMImageProcessorPil(
            size={"longest_edge": _SMOLVLM_TILES * tile},
            max_image_size={"longest_edge": tile},
            **_HALVES,
        )
    sides = vision.image_size if family == "internvl" else (vision.image_size,) * 2
    size = dict(zip(("height", "width"), sides, strict=True))
    if family == "internvl":
        return transformers.GotOcr2ImageProcessorPil(
            size=size,
            crop_to_patches=True,
            min_patches=1,
            max_patches=_INTERNVL_TILES,
            **_IMAGENET,
        )
    if family == "gemma3":
        return transformers.Gemma3ImageProcessorPil(size=size, **_HALVES)
    if family == "llava":
        shortest = {"shortest_edge": vision.image_size}
        return transformers.CLIPImageProcessorPil(size=shortest, crop_size=size)
    return transformers.LlavaOnevisionImageProcessorPil(
        size=size, image_grid_pinpoints=config.image_grid_pinpoints, **_HALVES
    )


def image_tokens(config: PreTrainedConfig, width: int, height: int) -> int:
    """Count the vision tokens of one image.

    Raises:
        ModelProblem: the family's rule is not known here.
        BadImage: it refuses the image.
    """
    family = config.model_type
    if family == "gemma3":  # one size; pan-and-scan is off in the published checkpoints
        return int(config.mm_tokens_per_image)
    if family == "llava":  # one size
        side = int(config.vision_config.image_size // config.vision_config.patch_size)
        with_class = config.vision_feature_select_strategy == "full"
        return side * side + int(with_class)
    if family == "llava_onevision":
        return _llava_onevision_tokens(config, width, height)
    if family == "molmo2":  # a view of the whole, and crops that overlap, pooled together
        return int(_molmo2(config).get_number_of_image_patches(height, width))
    processor = image_processor(config)
    if processor is None:
        raise ModelProblem(
            f"How many vision tokens {family} makes of an image is not known here.",
            cause=f"known: {', '.join(sorted((*_MERGED, *_OTHERS)))}",
            hint="mvw list profiles",
        )
    try:
        if family == "gemma4":
            return _gemma4_tokens(processor, width, height)
        if family == "minicpmv4_6":
            return _minicpm_tokens(processor, width, height)
        patches: Any = processor.get_number_of_image_patches(height, width, {})
    except ValueError as error:
        raise BadImage(
            f"{family} takes no image of {width} x {height} pixels.",
            cause=str(error),
            hint="mvw list profiles",
        ) from error
    if family == "internvl":  # tiles, and a thumbnail where there is more than one
        return int(patches) * int(config.image_seq_length)
    if family == "smolvlm":  # the same; 0 tiles are the picture alone
        side = config.vision_config.image_size // config.vision_config.patch_size
        return int(max(1, patches[0]) * (side // config.scale_factor) ** 2)
    return int(patches) // int(config.vision_config.spatial_merge_size) ** 2


def _molmo2(config: PreTrainedConfig) -> Any:
    """Make a processor that counts; to prepare images it needs torchvision."""
    from transformers.models.molmo2.image_processing_molmo2 import Molmo2ImageProcessor

    height, width = config.vision_config.image_size
    return Molmo2ImageProcessor(
        size={"height": height, "width": width}, patch_size=config.vision_config.patch_size
    )


def _gemma4_tokens(processor: Any, width: int, height: int) -> int:
    """The aspect ratio is kept, with as many whole squares of pooled patches as may be."""
    module: Any = sys.modules[type(processor).__module__]
    pool, most = processor.pooling_kernel_size, processor.max_soft_tokens
    sides = module.get_aspect_ratio_preserving_size(
        height, width, processor.patch_size, most * pool**2, pool
    )
    rows, columns = (side // (processor.patch_size * pool) for side in sides)
    return int(rows * columns)


def _minicpm_tokens(processor: Any, width: int, height: int) -> int:
    """A view of the whole, and slices where the picture is larger than one: 16 patches a token."""
    size, side, patch = (height, width), processor.scale_resolution, processor.patch_size
    # Older releases of transformers know this mode alone, and are not told.
    told = "downsample_mode" in signature(processor.find_best_resize).parameters
    how = {"downsample_mode": "16x"} if told else {}
    grid = processor.get_sliced_grid(size, processor.max_slice_nums, side)
    views = [processor.find_best_resize(size, side, patch, allow_upscale=grid is None, **how)]
    if grid is not None:
        views.append(processor.get_refine_size(size, grid, side, patch, allow_upscale=True, **how))
    return sum((rows // patch) * (columns // patch) // 16 for rows, columns in views)


def _llava_onevision_tokens(config: PreTrainedConfig, width: int, height: int) -> int:
    """A base view, and a grid of crops with the padding taken off and a newline after each row.

    LLaVA-OneVision (arXiv:2408.03326), section 3.2; `anyres_max_9` bounds the grid's features to
    those of 9 crops by scaling it down.
    """
    side = config.vision_config.image_size
    patches = side // config.vision_config.patch_size
    best_height, best_width = select_best_resolution((height, width), config.image_grid_pinpoints)
    rows, columns = patches * (best_height // side), patches * (best_width // side)
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    max_crops = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(rows * columns / (max_crops * patches**2))
    if ratio > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    return int(patches**2 + rows * (columns + 1))


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
        shortest = settings.size.get("shortest_edge")
        if shortest is not None:
            wide = high = min(right - left, bottom - top) / shortest
        else:
            wide = (right - left) / settings.size["width"]
            high = (bottom - top) / settings.size["height"]
        wide, high = wide * settings.crop_size["width"], high * settings.crop_size["height"]
        left, top = (left + right - wide) / 2, (top + bottom - high) / 2
        right, bottom = left + wide, top + high
    return left / width, top / height, right / width, bottom / height
