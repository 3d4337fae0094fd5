"""Visual Tokens Withdrawal: all vision tokens leave before one decoder layer of the prefill.

Source: arXiv 2405.05803, whose K is `layer`, with positions kept (`pe_type="keep"` in its
reference). `mvw calibrate vtw` finds a K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mvw_cli.policies.layers import AtLayer
from mvw_cli.policy import LayerView, WithdrawalPolicy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Vtw(AtLayer):
    """All vision tokens leave before decoder layer `layer`; the layers before keep them.

    Raises:
        ValueError: `layer` is below 1.
    """

    name: ClassVar[str] = "vtw"
    first_layer: ClassVar[int] = (
        1  # before layer 0 nothing has read them: the image need not be given
    )

    layer: int = field(
        metadata={"description": "The first decoder layer without vision tokens; 1 or more."}
    )

    def part(self) -> float:
        return 0.0

    def choose(self, view: LayerView) -> Tensor:
        import torch

        return torch.zeros_like(view.present)

    def conflict(self, before: Sequence[WithdrawalPolicy]) -> str | None:
        if any(other.name == "dyvte" for other in before):
            return "dyvte and vtw both choose the layer at which the vision leaves"
        return super().conflict(before)

    def describe(self) -> str:
        return f"no vision from layer {self.layer}"
