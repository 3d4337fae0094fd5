"""A random draw: from one decoder layer on, only a part of the vision tokens. A control.

UniPruneBench and arXiv 2512.07580 find it hard to beat.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mvw_cli.policies.layers import KeepPart, kept_count
from mvw_cli.policy import LayerView, require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Random(KeepPart):
    """From `layer` on only the part `keep`, drawn at random.

    The number drawn for a vision token depends on `seed` and its index alone. What a smaller `keep`
    leaves is part of what a larger one leaves.

    Raises:
        ValueError: `layer` or `seed` is below 0, or `keep` not above 0 and at most 1.
    """

    name: ClassVar[str] = "random"

    seed: int = field(default=0, metadata={"description": "Seed of the random draw; 0 or more."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seed >= 0, "seed must be 0 or more")

    def choose(self, view: LayerView) -> Tensor:
        import random

        import torch

        # Python's generator, not torch's: the draw is the same on any device, and nobody else's
        # random numbers change. Only its random() is promised to stay the same between versions.
        generator = random.Random(self.seed)
        draws = [generator.random() for _ in range(len(view.present))]
        there = view.present.nonzero()[:, 0].tolist()
        drawn = sorted(there, key=draws.__getitem__)[: kept_count(len(draws), self.keep)]
        chosen = torch.zeros_like(view.present)
        chosen[drawn] = True
        return chosen

    def describe(self) -> str:
        return f"a random {self.keep:.4g} of the vision from layer {self.layer} (seed {self.seed})"
