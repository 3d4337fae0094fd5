"""What an exit saves of a prefill, in FLOPs of the language model.

Counted as in `profiling/flops.py`. A layer's share of what vision costs is taken to be the same for
all layers that read vision, which is true of all but a few dense first layers of mixtures of
experts. It does not know which exits are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mvw_cli.cost.flops import Flops


@dataclass(frozen=True, slots=True)
class Prefill:
    """FLOPs of reading one prompt in the language model; the vision encoder is apart."""

    full: float
    """Every layer reads the vision."""
    text: float
    """No layer does."""
    encoder: float
    """Vision encoder and projector, which no exit saves."""

    def saved(self, blind: float) -> float:
        """Say which part of the language model's prefill is saved, from 0 to 1.

        blind: part of the layers that would read vision and do not.
        """
        return blind * (self.full - self.text) / self.full

    def saved_of_all(self, blind: float) -> float:
        """Say the same of the prefill with the vision encoder."""
        return self.saved(blind) * self.full / (self.full + self.encoder)


def prefill(flops: Flops, text: int, vision: int, *, keep_mlp: bool = False) -> Prefill:
    """Count a prompt.

    Args:
        text: prompt tokens besides the vision.
        keep_mlp: whether cross-attention layers without vision keep their gated MLP.
    """
    encoder = 0.0 if flops.tower is None else float(flops.tower.flops(vision))
    blind = flops.prefill(text, 0)
    if keep_mlp and any(layer.cross for layer in flops.shape.layers):
        blind += 2.0 * (flops.cross - flops.cross_attention) * text
    return Prefill(flops.prefill(text, vision) - encoder, blind, encoder)


def withdrawn_share(exit_layer: int | None, layers: int, cross_layers: tuple[int, ...]) -> float:
    """Say which part of the layers that read vision is past the exit.

    Args:
        exit_layer: the first layer without vision; None where it stays.
        cross_layers: cross-attention layers, if they read the vision.
    """
    if exit_layer is None:
        return 0.0
    reading = cross_layers or tuple(range(layers))
    return sum(layer >= exit_layer for layer in reading) / len(reading)
