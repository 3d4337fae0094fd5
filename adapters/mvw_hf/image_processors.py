"""Image processors of transformers with the settings of each family's published checkpoints.

Limits on the number of pixels or tiles are no part of a model's configuration: they are those that
the published checkpoints of each family carry in `preprocessor_config.json`. A checkpoint with
other limits, or a processor that was told others, gives other counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_QWEN3_LIMITS = {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}
"""Source: `preprocessor_config.json` of the Qwen3-VL and Qwen3.5 checkpoints."""
_QWEN2_LIMITS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
"""Source: `preprocessor_config.json` of the Qwen2-VL and Qwen2.5-VL checkpoints."""
_GLM_LIMITS = {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 12288}
"""Source: `preprocessor_config.json` of zai-org/GLM-4.1V-9B-Thinking. The upper limit counts both
frames that a still image is doubled to."""
_INTERNVL_TILES = 12
"""Source: `max_patches` in `preprocessor_config.json` of the InternVL3 -hf checkpoints."""
_HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def image_processor(config: Any) -> Any:
    """Make the image processor of a model's family; None where the family is not known here."""
    make = _FAMILIES.get(config.model_type)
    return None if make is None else make(config)


def _qwen2(config: Any) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(**_patches(config), size=_QWEN2_LIMITS)


def _qwen3(config: Any) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(**_patches(config), size=_QWEN3_LIMITS, **_HALVES)


def _glm4v(config: Any) -> Any:
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

    return Glm4vImageProcessorPil(**_patches(config), size=_GLM_LIMITS)


def _patches(config: Any) -> dict[str, int]:
    vision = config.vision_config
    return {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }


def _internvl(config: Any) -> Any:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    height, width = config.vision_config.image_size
    return GotOcr2ImageProcessorPil(
        size={"height": height, "width": width},
        crop_to_patches=True,
        min_patches=1,
        max_patches=_INTERNVL_TILES,
        **_IMAGENET,
    )


def _gemma3(config: Any) -> Any:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    return Gemma3ImageProcessorPil(size=_square(config), **_HALVES)


def _llava(config: Any) -> Any:
    from transformers import CLIPImageProcessorPil

    side = config.vision_config.image_size
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=_square(config))


def _llava_onevision(config: Any) -> Any:
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    return LlavaOnevisionImageProcessorPil(
        size=_square(config), image_grid_pinpoints=config.image_grid_pinpoints, **_HALVES
    )


def _square(config: Any) -> dict[str, int]:
    side = config.vision_config.image_size
    return {"height": side, "width": side}


_FAMILIES: dict[str, Callable[[Any], Any]] = {
    "gemma3": _gemma3,
    "glm4v": _glm4v,
    "internvl": _internvl,
    "llava": _llava,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2,
    "qwen2_5_vl": _qwen2,
    "qwen3_vl": _qwen3,
    "qwen3_vl_moe": _qwen3,
}
