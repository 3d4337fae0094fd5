"""Adaptive withdrawal: the vision tokens go once the model has all but stopped attending to them.

Attention to vision tokens falls as the output grows ("Reasoning with Fewer Eyes", figure 1), at
another pace in each answer. This policy watches it and needs no m. The engine computes the weights
of the newest query alone, at a few layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from mvw_cli.policies.layers import layer_at_or_below, probe_layers
from mvw_cli.policy import Decide, Signals, StepView, Withdraw, WithdrawalPolicy, require


@dataclass(frozen=True)
class Mass(WithdrawalPolicy):
    """Withdraw when the moving average of the vision attention mass stays under `threshold`.

    The mass is `StepView.mass`: the part of the newest query's attention that goes to vision
    tokens, mean over heads and probe layers. With cross-attention all of a layer's attention goes
    to vision; there it is the part by which the layer changes the stream,
    ‖added‖ / (‖stream‖ + ‖added‖).

    The average starts at the first mass; then

        average = smoothing · mass + (1 - smoothing) · average

    and a token for which no mass is told changes nothing.

    Raises:
        ValueError: a field is out of its range.
    """

    name: ClassVar[str] = "mass"

    threshold: float = field(
        metadata={"description": "Mass under which the vision counts as unused; above 0, up to 1."}
    )
    patience: int = field(
        default=4,
        metadata={"description": "Tokens in a row for which the average must be under it."},
    )
    smoothing: float = field(
        default=0.3,
        metadata={"description": "Weight of the newest token in the average; above 0, up to 1."},
    )
    layers: Sequence[int] | None = field(
        default=None,
        metadata={
            "description": "Layers at which the mass is measured, 0 is the first; one that holds "
            "no vision stands for the next below. null: three that are evenly spaced."
        },
    )
    min: int = field(
        default=1, metadata={"description": "Never withdraw before this many tokens; 1 or more."}
    )

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, "threshold must be above 0 and at most 1")
        require(self.patience >= 1, "patience must be 1 or more")
        require(0 < self.smoothing <= 1, "smoothing must be above 0 and at most 1")
        require(self.min >= 1, "min must be 1 or more: the first token comes out of the prefill")
        if self.layers is not None:
            layers = tuple(sorted(set(self.layers)))
            object.__setattr__(self, "layers", layers)
            known = bool(layers) and layers[0] >= 0
            require(known, "layers must be numbers of layers, 0 or more, at least one")

    def signals(self, layers: tuple[int, ...]) -> Signals:
        if self.layers is None or not layers:
            return Signals(mass=probe_layers(layers))
        return Signals(mass=tuple(sorted({layer_at_or_below(one, layers) for one in self.layers})))

    def begin(self) -> Decide:
        average: float | None = None
        under = 0
        done = False

        def decide(view: StepView) -> Withdraw | None:
            nonlocal average, under, done
            if done or view.mass is None:
                return None
            fresh = view.mass if average is None else average
            average = self.smoothing * view.mass + (1 - self.smoothing) * fresh
            under = under + 1 if average < self.threshold else 0
            if under < self.patience or view.step < self.min:
                return None
            done = True
            return Withdraw()

        return decide

    def describe(self) -> str:
        return f"at a vision mass under {self.threshold:g} for {self.patience} tokens"
