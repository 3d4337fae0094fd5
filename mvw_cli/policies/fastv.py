"""FastV: from one decoder layer on, only the vision tokens that the prompt's end attends to most.

Source: arXiv 2403.06764, whose K is `layer` and whose R is 1 - `keep`; its reference ranks by the
last prompt token's attention in the layer before, mean over the heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mvw_cli.policies.layers import KeepPart, kept_count
from mvw_cli.policy import LayerView

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FastV(KeepPart):
    """From `layer` on only the part `keep` with the highest weights in the layer before.

    Equal weights go by the lower index.

    Raises:
        ValueError: `layer` is below 1, or `keep` not above 0 and at most 1.
    """

    name: ClassVar[str] = "fastv"
    first_layer: ClassVar[int] = 1  # the layer before has the weights

    layer: int = field(
        metadata={"description": "The first decoder layer with fewer vision tokens; 1 or more."}
    )

    def prefill_weights(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer,) if self.layer < num_layers else ()

    def choose(self, view: LayerView) -> Tensor:
        import torch

        if view.weights is None:
            before = "no layer before it reads the vision tokens"
            raise self.refused(f"has nothing to rank by at layer {self.layer}", before)
        weights = view.weights.to(view.present.device)
        ranked = weights.masked_fill(~view.present, -torch.inf).argsort(
            descending=True, stable=True
        )
        chosen = torch.zeros_like(view.present)
        chosen[ranked[: kept_count(len(view.present), self.keep)]] = True
        return chosen

    def describe(self) -> str:
        return f"{self.keep:.4g} of the vision by attention from layer {self.layer}"
