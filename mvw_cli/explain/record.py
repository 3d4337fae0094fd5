"""What each generated token looked at, kept while its run goes on.

A policy that decides nothing stands before the one that runs, and asks the engine for the attention
of each newest query. The run is that of `mvw infer`: the same passes, the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from torch import Tensor

from mvw_cli.bench.quality.attention import spread
from mvw_cli.engine.checked_policy import CheckedPolicy
from mvw_cli.engine.types import Request
from mvw_cli.policies.stack import Stack
from mvw_cli.policy import Decide, Signals, StepView, WithdrawalPolicy


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """What the newest query looked at in one layer, mean over the heads."""

    mass: float
    """Share of its attention that went to vision tokens."""
    largest: float
    """Weight of the vision token that got most."""
    parts: Tensor
    """On each vision token, in parts of the largest: tiny weights are many in a large image, and
    16 bits alone would round them to nothing.  # (N,) float16, on the host"""

    def weights(self) -> Tensor:
        """The weights themselves.  # (N,) float32"""
        return self.parts.float() * self.largest


def layer_attention(weights: Tensor) -> LayerAttention:
    """Keep the weights of one layer.  weights: # (N,) float32"""
    largest = float(weights.max())
    return LayerAttention(float(weights.sum()), largest, (weights / largest).half().cpu())


@dataclass(frozen=True, slots=True)
class Step:
    """What the query looked at, in the pass that chose one token."""

    mass: float | None
    """Part of its attention that went to vision tokens, mean over heads and watched layers; or
    what cross-attention layers added to the stream. None where no vision was left to look at."""
    by_layer: Mapping[int, LayerAttention]
    """By layer; those without vision are not named."""


@dataclass(slots=True)
class Record:
    """One run, as it went. 2 bytes are kept for each token, watched layer and vision token."""

    measure: Literal["attention", "cross-attention"]
    """`cross-attention`: the vision is read by layers where all attention goes to it. There
    `Step.mass` is ‖added‖ / (‖stream‖ + ‖added‖), with all that such a layer adds to the newest
    token's hidden state."""
    vision_tokens: int
    layers: tuple[int, ...] = ()
    """The watched layers: those that hold vision after the prefill, or 12 evenly among them."""
    mass_layers: tuple[int, ...] = ()
    """Those that `Step.mass` is the mean of."""
    steps: list[Step] = field(default_factory=list)

    def signals(self, layers: tuple[int, ...], mass: tuple[int, ...]) -> Signals:
        """Ask for the weights of the layers that are recorded.

        Args:
            mass: layers whose mass the policy asks for: there is one mass for both.
        """
        self.layers = tuple(spread(layers))
        if self.measure == "attention":
            self.mass_layers = self.layers
            return Signals(weights=self.layers, last=True)
        self.mass_layers = mass or self.layers
        return Signals(mass=self.mass_layers, weights=self.layers, last=True)

    def take(self, view: StepView) -> None:
        """Keep what was looked at for one token."""
        found = {
            layer: layer_attention(weights)
            for layer, weights in (view.weights or {}).items()
            if layer in self.layers and bool(weights.any())
        }
        mass = None
        if found and self.measure == "cross-attention":
            mass = view.mass
        elif found:
            mass = sum(one.mass for one in found.values()) / len(self.layers)
        self.steps.append(Step(mass, found))


@dataclass(frozen=True)
class Recording(WithdrawalPolicy):
    """Decides nothing; a record is shown every token."""

    name: ClassVar[str] = "recording"

    record: Record
    policy: WithdrawalPolicy
    """The one that runs beside it."""

    def begin(self) -> Decide:
        return self.record.take

    def signals(self, layers: tuple[int, ...]) -> Signals:
        return self.record.signals(layers, CheckedPolicy(self.policy).signals(layers).mass)


def recorded(request: Request) -> tuple[Request, Record]:
    """Let a request be watched; return it with the record that its run will fill."""
    layout = request.layout
    beside = layout.cross_entries is not None
    record = Record("cross-attention" if beside else "attention", layout.vision_tokens)
    watched = Stack((Recording(record, request.policy), request.policy))
    return replace(request, policy=watched), record
