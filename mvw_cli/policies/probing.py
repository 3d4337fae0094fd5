"""At which layers a policy looks, among those that hold vision.

Which layers hold any is known only after the prefill of a request: with cross-attention they are
few, and policies before may have emptied the deeper ones.
"""

from __future__ import annotations

from collections.abc import Sequence

_PROBES = 3


def probes(layers: Sequence[int]) -> tuple[int, ...]:
    """Choose the middle of each third of some layers; all of them where they are few."""
    if len(layers) <= _PROBES:
        return tuple(layers)
    return tuple(layers[(2 * i + 1) * len(layers) // (2 * _PROBES)] for i in range(_PROBES))


def held_up_to(layer: int, layers: Sequence[int]) -> int:
    """Choose the last of some layers up to a number; the first where all are above it.

    Args:
        layers: those that hold vision, in order; at least one.
    """
    return max((held for held in layers if held <= layer), default=layers[0])
