"""Where the vision tokens of one request lie: in the prompt, or among cross-attention states.

Vision tokens are counted 0…N-1. A layer of the cache tells the sequence index of each entry that it
holds; this module turns one into the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from mvw_cli.adapter import VisionLayout
from mvw_cli.engine.types import NotExact

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, eq=False)
class Vision:
    """The vision tokens of a request."""

    tokens: int
    """N."""
    prompt: int
    """P, entries of the prompt in the sequence."""
    cross_attention: bool
    """Whether cross-attention layers hold the vision, next to the sequence."""
    places: Tensor
    """In the prompt, or among the vision states that the model makes.  # (N,) long, on the host"""
    numbers: Tensor
    """Which vision token an index of a layer's entries stands for; -1 for text. A cross-attention
    layer counts the vision tokens themselves.  # (P,) or (N,) long, on the host"""
    images: tuple[int, ...]
    grids: tuple[tuple[int, int], ...] | None

    def of(self, indices: Tensor) -> Tensor:
        """Return which vision tokens some entries are: # (K,) long -> (K,) long, -1 for text."""
        found = torch.full_like(indices, -1)
        known = indices < len(self.numbers)
        found[known] = self.numbers[indices[known]]
        return found

    def entries(self, tokens: Tensor) -> Tensor:
        """Mark which indices of a layer stand for some vision tokens.

        tokens: # (N,) bool. Returned: # (P,) bool, or (N,) bool with cross-attention.
        """
        if self.cross_attention:
            return tokens
        found = torch.zeros(self.prompt, dtype=torch.bool)
        found[self.places[tokens]] = True
        return found

    def held_by(self, indices: Tensor) -> Tensor:
        """Mark the vision tokens among a layer's entries: # (K,) long -> (N,) bool."""
        numbers = indices if self.cross_attention else self.of(indices)
        found = torch.zeros(self.tokens, dtype=torch.bool)
        found[numbers[numbers >= 0]] = True
        return found


def vision_of(layout: VisionLayout, prompt: int) -> Vision:
    """Number the vision tokens of a layout.

    Raises:
        NotExact: the model holds vision in the sequence and by cross-attention.
    """
    entries = layout.entries.cpu()
    crossed = None if layout.cross_entries is None else layout.cross_entries.cpu()
    cross_attention = crossed is not None and bool(crossed.any())
    if cross_attention and bool(entries.any()):
        raise NotExact("it holds vision both in the sequence and by cross-attention")
    held = crossed if cross_attention and crossed is not None else entries
    places = held.nonzero()[:, 0]
    count = len(places)
    if cross_attention:
        numbers = torch.arange(count)
    else:
        numbers = torch.full((prompt,), -1, dtype=torch.long)
        numbers[places] = torch.arange(count)
    images = layout.images
    if images is None:
        images = (count,) if cross_attention else _runs(places)
    elif sum(images) != count:
        raise NotExact(
            f"its adapter tells of {sum(images)} vision tokens by image, of {count} else"
        )
    return Vision(count, prompt, cross_attention, places, numbers, images, layout.grids)


def per_layer(function: Callable[..., Made], *of: Mapping[int, Any]) -> dict[int, Made]:
    """Apply a function at each layer of the first mapping.

    Layers that share what is given, which most do, are computed once and share what comes out.
    """
    known: dict[tuple[int, ...], Made] = {}
    found = {}
    for layer in of[0]:
        given = [one[layer] for one in of]
        key = tuple(map(id, given))
        if key not in known:
            known[key] = function(*given)
        found[layer] = known[key]
    return found


def _runs(places: Tensor) -> tuple[int, ...]:
    """Count the tokens of each run without a gap: one image, where the adapter does not tell."""
    if not len(places):
        return ()
    ends = ((places[1:] - places[:-1]) != 1).nonzero()[:, 0] + 1
    edges = [0, *ends.tolist(), len(places)]
    return tuple(after - before for before, after in pairwise(edges))
