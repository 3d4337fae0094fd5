"""Where the vision states of Mllama lie in a picture: tiles, each with a class token and patches.

Tiles are chosen, and the picture fitted into their canvas, as `MllamaImageProcessor` does.
"""

from __future__ import annotations

from typing import Any

from mvw_cli import Patch, clipped_patch


def tile_patches(vision: Any, image: int, size: tuple[int, int], tile: int) -> list[Patch | None]:
    """List the patches of one tile; the first state is its class token, which has no place.

    Args:
        vision: configuration of the vision tower.
        image: number of the picture; size: its width and height in pixels.
        tile: number of the tile; they go row by row.
    """
    from transformers.models.mllama.image_processing_pil_mllama import (
        get_image_size_fit_to_canvas,
        get_optimal_tiled_canvas,
    )

    width, height = size
    side = vision.image_size
    canvas_height, canvas_width = get_optimal_tiled_canvas(
        height, width, vision.max_num_tiles, side
    )
    fitted_height, fitted_width = get_image_size_fit_to_canvas(
        height, width, canvas_height, canvas_width, side
    )
    row, column = divmod(tile, canvas_width // side)
    found: list[Patch | None] = [None]
    for y in range(row * side, (row + 1) * side, vision.patch_size):
        for x in range(column * side, (column + 1) * side, vision.patch_size):
            right, bottom = x + vision.patch_size, y + vision.patch_size
            found.append(
                clipped_patch(
                    image,
                    x / int(fitted_width),
                    y / int(fitted_height),
                    right / int(fitted_width),
                    bottom / int(fitted_height),
                )
            )
    return found
