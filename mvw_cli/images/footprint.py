"""How much memory is held by what has been read ahead: an estimate, of pixels and tensors alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvw_cli.images.reading import ImageFile


def pixel_bytes(images: Iterable[ImageFile]) -> int:
    """Bytes of decoded images, in RGB."""
    return sum(3 * file.size[0] * file.size[1] for file in images)


def tensor_bytes(value: Any, depth: int = 5) -> int:
    """Bytes of all tensors or arrays in a value, nested in dictionaries, lists and dataclasses."""
    try:
        own = value.nbytes
    except Exception:  # no attribute, or a tensor of a layout that has no such number
        own = None
    if isinstance(own, int):
        return own
    parts: list[Any] = []
    if depth and isinstance(value, Mapping):
        parts = list(value.values())
    elif depth and isinstance(value, list | tuple):
        parts = list(value)
    elif depth and dataclasses.is_dataclass(value):
        parts = [getattr(value, part.name) for part in dataclasses.fields(value)]
    return sum(tensor_bytes(part, depth - 1) for part in parts)
