"""Tell whether a picture is of the embedded model's world, so that it can warn when it is not.

It looks at colours and their places only and does not know the model. It is a check for honesty,
not a classifier: a picture that passes has a near-white ground and plain palette colours, one to
a cell of the 3x3 grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mvw_shapes.scenes import COLOURS

if TYPE_CHECKING:
    from PIL import Image

_SIDE = 168  # px; the picture is examined at this size
_STRETCH = 1.25  # the most by which one side may be the longer
_WHITE = 0.90  # least brightness of every channel of the ground
_NEAR = 0.20  # distance in RGB, each channel in [0, 1], that still counts as a palette colour


def looks_like_scene(image: Image.Image) -> bool:
    """Say whether a picture could be one of the scenes that the embedded model was trained on."""
    from PIL import Image

    width, height = image.size
    if min(width, height) < 48 or max(width, height) > _STRETCH * min(width, height):
        return False
    small = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(_SIDE, _SIDE, 3).float() / 255  # (H, W, 3)
    ground = pixels.amin(-1) > _WHITE
    palette = torch.tensor(list(COLOURS.values())) / 255  # (C, 3)
    distance, colour = (pixels[:, :, None] - palette).norm(dim=-1).min(-1)  # (H, W)
    painted = distance < _NEAR
    if not ground.float().mean() > 0.45 or not painted.float().mean() > 0.004:
        return False
    return _on_grid(ground) and _plain(pixels, ground, painted) and _one_each(painted, colour)


def _on_grid(ground: torch.Tensor) -> bool:
    """Shapes keep inside their cells, so the lines between the cells stay empty."""
    third = _SIDE // 3
    lines = [ground[cut - 1 : cut + 1] for cut in (third, 2 * third)]
    lines += [ground[:, cut - 1 : cut + 1].T for cut in (third, 2 * third)]
    return bool(torch.cat(lines).float().mean() > 0.965)


def _plain(pixels: torch.Tensor, ground: torch.Tensor, painted: torch.Tensor) -> bool:
    """Whatever is neither ground nor paint must be the narrow seam between the two."""
    white = pixels[ground].mean(0)
    palette = torch.tensor(list(COLOURS.values())) / 255
    ray = palette - white  # (C, 3)
    rest = pixels[~ground & ~painted]  # (N, 3)
    if not len(rest):
        return True
    along = ((rest - white) @ ray.T / ray.square().sum(-1)).clamp(0, 1.1)  # (N, C)
    off = (rest[:, None] - white - along[..., None] * ray).norm(dim=-1).amin(-1)
    odd = (off > 0.16).sum() / ground.numel()
    seam = len(rest) / ground.numel()
    return bool(odd < 0.012) and seam < 0.9 * float(painted.float().mean()) + 0.02


def _one_each(painted: torch.Tensor, colour: torch.Tensor) -> bool:
    """Every cell is empty, or holds enough of one colour to be a shape."""
    third = _SIDE // 3
    for row in range(3):
        for column in range(3):
            cell = (
                slice(row * third, (row + 1) * third),
                slice(column * third, (column + 1) * third),
            )
            found = colour[cell][painted[cell]]
            share = len(found) / third**2
            if share < 0.004:
                continue
            if share < 0.04 or found.bincount().max() < 0.8 * len(found):
                return False
    return True
