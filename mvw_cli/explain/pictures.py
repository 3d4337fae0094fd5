"""The pictures as SVG, with one rectangle for each patch: its opacity is the heat."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from mvw_cli.explain.data import Explained, Picture, mean_weights
from mvw_cli.render.svg import safe

if TYPE_CHECKING:
    from PIL.Image import Image

    from mvw_cli.adapter import Patch

_LONGEST = 1600
"""Pixels a side; a larger picture is scaled down for the page."""
_SMALL = 512 * 512
"""Pixels up to which a picture is kept without loss."""


def pictures_html(run: Explained, chosen: int) -> str:
    """Draw each picture with the heat map of a token over it."""
    patches = run.patches or []
    weights: list[float] = []
    if patches and run.record.steps:
        weights = mean_weights(run.record, chosen).tolist()
    placed = [w for w, one in zip(weights, patches, strict=False) if one is not None]
    largest = max(placed, default=0.0) or 1.0
    drawn = []
    for number, picture in enumerate(run.pictures):
        heat = "".join(
            _rectangle(token, patch, picture.image, weights[token] / largest if weights else 0.0)
            for token, patch in enumerate(patches)
            if patch is not None and patch.image == number
        )
        drawn.append(_picture(number, picture, heat))
    return f'<div class="pictures">{"".join(drawn)}</div>\n'


def _picture(number: int, picture: Picture, heat: str) -> str:
    width, height = picture.image.size
    return (
        f'<figure><svg role="img" aria-label="Image {number + 1}: {safe(picture.name)}" '
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'preserveAspectRatio="xMidYMid meet">'
        f'<image width="{width}" height="{height}" preserveAspectRatio="none" '
        f'href="{_address(picture.image)}"/><g class="heat">{heat}</g></svg></figure>'
    )


def _rectangle(token: int, patch: Patch, image: Image, heat: float) -> str:
    x, y = patch.left * image.width, patch.top * image.height
    wide, high = (patch.right - patch.left) * image.width, (patch.bottom - patch.top) * image.height
    return (
        f'<rect data-v="{token}" x="{x:.2f}" y="{y:.2f}" width="{wide:.2f}" height="{high:.2f}" '
        f'fill-opacity="{heat:.3f}"/>'
    )


def _address(image: Image) -> str:
    """Write a picture into an address of its own."""
    shown = image
    if max(image.size) > _LONGEST:
        shown = image.copy()
        shown.thumbnail((_LONGEST, _LONGEST))
    file = io.BytesIO()
    kind = "png" if shown.width * shown.height <= _SMALL else "jpeg"
    shown.save(file, kind, **({"optimize": True} if kind == "png" else {"quality": 88}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
