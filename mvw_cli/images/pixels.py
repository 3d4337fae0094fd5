"""Pixels of any mode into 8-bit RGB, and sizes that fit a number of pixels.

It knows nothing of files or models.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image to 8-bit RGB: transparency goes on white, deep greys are scaled."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct way from La to RGBA
    if not image.has_transparency_data:
        return image.convert("RGB")
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


def fit(size: tuple[int, int], max_pixels: int | None) -> tuple[int, int]:
    """Scale a size down to at most so many pixels; the aspect ratio stays, no side drops below 1.

    Raises:
        ValueError: `max_pixels` is below 1.
    """
    width, height = size
    if max_pixels is None or width * height <= max_pixels:
        return size
    if max_pixels < 1:
        raise ValueError("max_pixels must be 1 or more")
    scale = math.sqrt(max_pixels / (width * height))
    width, height = max(1, int(width * scale)), max(1, int(height * scale))
    if width == 1 or height == 1:  # a side held at 1 has given too little: the other gives more
        return min(width, max_pixels), min(height, max_pixels)
    return width, height


def _deep_grey(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float greys to 8 bits; `convert` would clip them at 255."""
    import numpy as np  # here, because few images need it

    values = np.asarray(image).astype(np.float32)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    low, high = _grey_range(image, low, high)
    scaled = (values - low) * (255 / ((high - low) or 1))
    grey = np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255).round()
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):
        grey[values == hidden] = 255  # the grey that a 16-bit PNG declares transparent
    return Image.fromarray(_bytes(grey))


def _bytes(grey: NDArray[np.float32]) -> NDArray[np.uint8]:
    return grey.astype("uint8")


def _grey_range(image: Image.Image, low: float, high: float) -> tuple[float, float]:
    """Say which values are black and white, given the lowest and the highest that occur.

    Only 16-bit files say so themselves. For the others the smallest usual range that holds all
    values is taken, and the image's own range where none does.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return 0, 65535
    usual = (1, 255, 65535) if image.mode == "F" else (255, 65535)
    for top in usual:
        if low >= 0 and high <= top:
            return 0, top
    return low, high
