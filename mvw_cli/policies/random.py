"""A lot: from one decoder layer on, only a random part of the vision tokens. A control.

UniPruneBench and arXiv 2512.07580 find it hard to beat. This module uses no generator of torch, so
the lot is the same on any device, and nobody else's numbers change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mvw_cli.policies.thinning import Thinning, kept
from mvw_cli.policy import LayerView

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Random(Thinning):
    """From `layer` on only the part `keep`, drawn by lot.

    The lot of a vision token depends on `seed` and its index alone. What a smaller `keep` leaves is
    part of what a larger one leaves.

    Raises:
        ValueError: `layer` or `seed` is below 0, or `keep` not above 0 and at most 1.
    """

    name: ClassVar[str] = "random"

    keep: float = field(
        metadata={"description": "Part of the vision tokens that stays; above 0, at most 1."}
    )
    layer: int = field(
        default=0,
        metadata={"description": "The first decoder layer with fewer vision tokens; 0 or more."},
    )
    seed: int = field(default=0, metadata={"description": "Seed of the lot; 0 or more."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed < 0:
            raise ValueError("seed must be 0 or more")

    def choose(self, view: LayerView) -> Tensor:
        import random

        import torch

        # Of Python's generator only random() is promised to stay the same between versions.
        draw = random.Random(self.seed)
        lots = [draw.random() for _ in range(len(view.present))]
        there = view.present.nonzero()[:, 0].tolist()
        drawn = sorted(there, key=lots.__getitem__)[: kept(len(lots), self.keep)]
        chosen = torch.zeros_like(view.present)
        chosen[drawn] = True
        return chosen

    def describe(self) -> str:
        return f"a random {self.keep:.4g} of the vision from layer {self.layer} (seed {self.seed})"
