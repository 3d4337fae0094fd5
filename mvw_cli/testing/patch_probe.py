"""Does a vision token lie where its adapter says? Found by changing the picture just there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mvw_cli.oracle.equivalence import noise
from mvw_cli.testing.vision_probe import vision_changes

if TYPE_CHECKING:
    from PIL.Image import Image

    from mvw_cli.adapter import Adapter, LoadedModel, Patch


_ABOUT = 0.6
"""A small tower of random weights mixes its patches: others may move about as much as the one that
was changed. In the models here the right one moved 0.75 of the most or more, a wrong one 0.25."""


def misplaced(
    adapter: Adapter, loaded: LoadedModel, sizes: Sequence[tuple[int, int]]
) -> str | None:
    """Change a patch of one picture at a time: the vision token made from it must change most, or
    about as much.

    Args:
        sizes: of the pictures of one request, in pixels.

    Returns:
        What is wrong, or None.

    Raises:
        LookupError: the adapter does not tell where its vision tokens lie.
    """
    images = [noise(*size, seed=number) for number, size in enumerate(sizes)]
    inputs = adapter.encode(loaded, images, "How many?")
    layout = adapter.vision(loaded, inputs)
    patches = adapter.patches(loaded, inputs, images)
    if patches is None:
        raise LookupError("the adapter does not tell where its vision tokens lie")
    if len(patches) != layout.vision_tokens:
        count = layout.vision_tokens
        return f"patches() tells of {len(patches)} vision tokens, vision() of {count}"
    told = [(one, patch) for one, patch in enumerate(patches) if patch is not None]
    for number, image in enumerate(images):
        own = [(one, patch) for one, patch in told if patch.image == number]
        largest = max((_pixels(patch, image) for _, patch in own), default=0.0)
        # One that lies half in the padding shows too little of a change.
        own = [one for one in own if _pixels(one[1], image) > 0.9 * largest]
        if not own:
            return f"no vision token has a place in image {number}"
        # The second one tells rows from columns, in a square as well.
        chosen = dict((own[0], own[1 % len(own)], own[len(own) // 3], own[-1]))
        for token, patch in chosen.items():
            edges = (patch.left, patch.top, patch.right, patch.bottom)
            if not (0 <= edges[0] < edges[2] <= 1 and 0 <= edges[1] < edges[3] <= 1):
                return f"{patch} is no part of a picture"
            changed = [*images[:number], _inverted(image, patch), *images[number + 1 :]]
            other = adapter.encode(loaded, changed, "How many?")
            moved = vision_changes(loaded.model, inputs, other, layout)
            most = int(moved.argmax())
            if not moved[token] > _ABOUT * moved[most]:
                return (
                    f"a change at {patch} moves vision token {most} most, not {token}, which "
                    "patches() says lies there"
                )
    return None


def _pixels(patch: Patch, image: Image) -> float:
    width, height = image.size
    return (patch.right - patch.left) * width * (patch.bottom - patch.top) * height


def _inverted(image: Image, patch: Patch) -> Image:
    """Turn the colours of a patch into their opposites."""
    from PIL import ImageOps

    (width, height), changed = image.size, image.copy()
    corners = patch.left * width, patch.top * height, patch.right * width, patch.bottom * height
    left, top, right, bottom = map(round, corners)
    box = left, top, max(right, left + 1), max(bottom, top + 1)
    changed.paste(ImageOps.invert(image.crop(box)), box)
    return changed
