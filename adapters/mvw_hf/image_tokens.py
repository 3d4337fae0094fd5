"""How many vision tokens an image becomes, from a configuration and the image's size.

Follows the image processors of transformers, by their own arithmetic where they expose it, with the
limits of `image_processors.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mvw_cli import BadImage, ModelProblem
from mvw_hf.image_processors import image_processor


def image_tokens(config: Any, width: int, height: int) -> int:
    """Count the vision tokens of one image.

    Raises:
        ModelProblem: the family's rule is not known here.
        BadImage: it refuses the image.
    """
    rule = _RULES.get(config.model_type)
    if rule is None:
        raise ModelProblem(
            f"How many vision tokens {config.model_type} makes of an image is not known here.",
            cause=f"known: {', '.join(sorted(_RULES))}",
            hint="mvw list profiles",
        )
    try:
        return rule(config, width, height)
    except ValueError as error:
        raise BadImage(
            f"{config.model_type} takes no image of {width} x {height} pixels.",
            cause=str(error),
            hint="mvw list profiles",
        ) from error


def _fixed(config: Any, width: int, height: int) -> int:
    """CLIP and its like: every image is resized and cropped to one size."""
    vision = config.vision_config
    patches = int((vision.image_size // vision.patch_size) ** 2)
    with_class = config.vision_feature_select_strategy == "full"
    return patches + int(with_class)


def _merged(config: Any, width: int, height: int) -> int:
    """Patches of a size that keeps the aspect ratio, merged into tokens side by side."""
    patches = image_processor(config).get_number_of_image_patches(height, width, {})
    return int(patches // config.vision_config.spatial_merge_size**2)


def _internvl(config: Any, width: int, height: int) -> int:
    """Tiles of one size, and a thumbnail where there is more than one."""
    tiles = image_processor(config).get_number_of_image_patches(height, width, {})
    return int(tiles * config.image_seq_length)


def _gemma3(config: Any, width: int, height: int) -> int:
    """Every image is resized to one size; pan-and-scan is off in the published checkpoints."""
    return int(config.mm_tokens_per_image)


def _llava_onevision(config: Any, width: int, height: int) -> int:
    """A base view, and a grid of crops with the padding taken off and a newline after each row.

    LLaVA-OneVision (arXiv:2408.03326), section 3.2; `anyres_max_9` bounds the grid's features to
    those of 9 crops by scaling it down.
    """
    from transformers.image_processing_utils import select_best_resolution

    side = config.vision_config.image_size
    patches = side // config.vision_config.patch_size
    best_height, best_width = select_best_resolution((height, width), config.image_grid_pinpoints)
    rows, columns = patches * (best_height // side), patches * (best_width // side)
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(rows * columns / (most * patches**2))
    if ratio > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    return int(patches**2 + rows * (columns + 1))


_RULES: dict[str, Callable[[Any, int, int], int]] = {
    "gemma3": _gemma3,
    "glm4v": _merged,
    "internvl": _internvl,
    "llava": _fixed,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _merged,
    "qwen2_5_vl": _merged,
    "qwen3_vl": _merged,
    "qwen3_vl_moe": _merged,
}
