"""Kimi-VL's image preparation: scale, pad, cut into patches; with PIL and torch alone.

As the checkpoint's `image_processing_kimi_vl.py` does it, whose code is not run. An image keeps its
resolution: only one of more patches than the limit is scaled down.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

MOST_PATCHES = 512
"""Per side; the rotary embedding of the vision tower is made for fewer."""


@dataclass(frozen=True, slots=True)
class ImagePreparation:
    """The settings of `preprocessor_config.json`."""

    patch_size: int = 14
    merge_kernel_size: tuple[int, int] = (2, 2)
    in_token_limit: int = 4096
    """Most patches of an image before merging. The default is that of the checkpoints' own code."""
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pad_input: bool = True
    """Pad right and below to whole merged patches; else crop around the centre."""

    def size(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Tell how an image is scaled, then padded or cropped: two times width and height, in px.

        Raises:
            ValueError: a side has too many patches, or none.
        """
        patch = self.patch_size
        scaled_width, scaled_height = width, height
        patches = (width // patch) * (height // patch)
        if patches > self.in_token_limit:
            scale = math.sqrt(self.in_token_limit / patches)
            scaled_width, scaled_height = int(width * scale), int(height * scale)
        down, across = (patch * count for count in self.merge_kernel_size)
        if self.pad_input:
            final_width = -(-scaled_width // across) * across
            final_height = -(-scaled_height // down) * down
        else:
            final_width = scaled_width - scaled_width % across
            final_height = scaled_height - scaled_height % down
        sides = (final_width // patch, final_height // patch)
        if not min(sides) > 0 or max(sides) >= MOST_PATCHES:
            raise ValueError(
                f"an image of {width} x {height} px becomes {sides[0]} x {sides[1]} "
                f"patches; 1 to {MOST_PATCHES - 1} a side can be read"
            )
        return scaled_width, scaled_height, final_width, final_height

    def area(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Tell where the patches lie over a picture: left, top, right, bottom edge, in parts of it.

        Past 1 where they cover padding too.
        """
        wide, high, final_width, final_height = self.size(width, height)
        if self.pad_input:
            return 0.0, 0.0, final_width / wide, final_height / high
        left, top = (wide - final_width) // 2, (high - final_height) // 2
        right, bottom = left + final_width, top + final_height
        return left / wide, top / high, right / wide, bottom / high

    def vision_tokens(self, width: int, height: int) -> int:
        """Count the vision tokens of an image.

        Raises:
            ValueError: it can't be read.
        """
        _, _, final_width, final_height = self.size(width, height)
        merged = math.prod(self.merge_kernel_size)
        return (final_width // self.patch_size) * (final_height // self.patch_size) // merged

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Cut images into patches.

        Returns `pixel_values`  # (patches of all images, 3, p, p)  in [-1, 1], and
        `image_grid_thw`  # (images, 3): one frame, then rows and columns of patches.
        """
        cut = [self._patches(image) for image in images]
        return {
            "pixel_values": torch.cat([patches for patches, _, _ in cut]),
            "image_grid_thw": torch.tensor([[1, rows, columns] for _, rows, columns in cut]),
        }

    def _patches(self, image: Image.Image) -> tuple[Tensor, int, int]:
        width, height, final_width, final_height = self.size(*image.size)
        image = image.convert("RGB")
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        if self.pad_input:
            canvas = Image.new("RGB", (final_width, final_height))  # black, as published
            canvas.paste(image, (0, 0))
        else:
            left, top = (width - final_width) // 2, (height - final_height) // 2
            canvas = image.crop((left, top, left + final_width, top + final_height))
        pixels = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(final_height, final_width, 3).permute(2, 0, 1) / 255
        mean, std = (
            torch.tensor(three)[:, None, None] for three in (self.image_mean, self.image_std)
        )
        size = self.patch_size
        rows, columns = final_height // size, final_width // size
        patches = ((pixels - mean) / std).view(3, rows, size, columns, size)
        return patches.permute(1, 3, 0, 2, 4).flatten(0, 1), rows, columns


def limit_of(name: str, revision: str | None = None) -> int:
    """Say how many patches of an image a checkpoint allows; asks the hub for one small file.

    Where its `preprocessor_config.json` can't be had or does not tell: the default.
    """
    from transformers.utils import cached_file

    found = cached_file(
        name,
        "preprocessor_config.json",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    told = ImagePreparation() if found is None else read_preparation(Path(found).parent)
    return told.in_token_limit


def read_preparation(folder: Path) -> ImagePreparation:
    """Read the settings of a checkpoint folder.

    Raises:
        OSError: `preprocessor_config.json` is missing.
    """
    told = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    names = {field.name for field in fields(ImagePreparation)}
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in told.items()
        if name in names
    }
    return ImagePreparation(**known)
