"""Dynamic Vision-Token Exit: a small gate per layer says in the prefill when the vision may go.

Source: arXiv 2411.19628. The gates are trained for one model, by `mvw calibrate dyvte`; what one
reads and computes is in `gates.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, ClassVar

from mvw_cli.policy import LayerView, Select, WithdrawalPolicy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Dyvte(WithdrawalPolicy):
    """All vision tokens leave before the first layer at which a gate says so.

    Gate l reads what layer l has made of the text, so the earliest exit is before layer 1. Where no
    gate says so, the vision stays.

    Raises:
        ValueError: `gates` is empty, or `min_layer` is below 1.
    """

    name: ClassVar[str] = "dyvte"

    gates: str = field(
        metadata={"description": "The trained gates: a file that `mvw calibrate dyvte` wrote."}
    )
    min_layer: int | None = field(
        default=None,
        metadata={"description": "So many layers read the vision at least; 1 or more."},
    )

    def __post_init__(self) -> None:
        if not self.gates:
            raise ValueError("gates must name a file")
        if self.min_layer is not None and self.min_layer < 1:
            raise ValueError("min_layer must be 1 or more: the first gate reads the first layer")

    def begin_prefill(self) -> Select:
        """Start a prefill.

        Raises:
            ModelProblem: the file of gates is missing or is none, or belongs to another model; what
                of the latter shows only in the prefill is raised there.
        """
        import torch

        from mvw_cli.calibrate.dyvte.gates import features, read_gates, scores

        gates = read_gates(self.gates)
        first = self.min_layer or 1

        def select(view: LayerView) -> Tensor | None:
            if view.layer == 0:
                gates.check(view.num_layers, view.hidden_states.shape[-1])
            if view.layer < first or not view.present.any():
                return None
            gate = gates.gate(view.layer - 1, like=view.hidden_states)
            keep, leave = scores(gate, features(view.hidden_states, view.text, view.image_end))
            return torch.zeros_like(view.present) if leave > keep else None

        return select

    def conflict(self, before: Sequence[WithdrawalPolicy]) -> str | None:
        if any(other.name == "vtw" for other in before):
            return "vtw and dyvte both choose the layer at which the vision leaves"
        return super().conflict(before)

    def describe(self) -> str:
        least = "" if self.min_layer is None else f", not before layer {self.min_layer}"
        return f"exit by the gates of {PurePath(self.gates).name}{least}"
