"""What each generated token looked at, kept while its run goes on.

A policy that decides nothing of its own is put around the one that runs, and asks the engine for
the attention of each newest query. The run is that of `mvw infer`: the same passes, the same
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from mvw_cli.bench.quality.attention import MOST_LAYERS, spread
from mvw_cli.engine.types import Request
from mvw_cli.policy import Attend, Decide, Select, Signals, StepView, WithdrawalPolicy


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

    def at(self, layer: int) -> float | None:
        """Share of the attention that went to vision at one layer; None without any."""
        found = self.by_layer.get(layer)
        return None if found is None else found.mass


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

    def signals(self, layers: tuple[int, ...], asked: Signals) -> Signals:
        """Ask for the weights of the layers that are recorded."""
        self.layers = tuple(spread(layers, MOST_LAYERS)) if layers else ()
        mass = asked.mass
        if self.measure == "cross-attention" and not mass:
            mass = self.layers
        self.mass_layers = mass if self.measure == "cross-attention" else self.layers
        return replace(asked, mass=mass, weights=tuple(sorted({*asked.weights, *self.layers})))

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
class Recorded(WithdrawalPolicy):
    """A policy that decides as it does alone, with a record that is shown every token."""

    name: ClassVar[str] = "recorded"

    policy: WithdrawalPolicy
    record: Record

    def begin(self) -> Decide:
        decide = self.policy.begin()

        def recorded(view: StepView) -> Any:
            self.record.take(view)
            return decide(view)

        return recorded

    def begin_prefill(self) -> Select | None:
        return self.policy.begin_prefill()

    def begin_attending(self) -> Attend | None:
        return self.policy.begin_attending()

    def signals(self, layers: tuple[int, ...]) -> Signals:
        return replace(self.record.signals(layers, self.policy.signals(layers)), last=True)

    def prefill_weights(self, layers: int) -> tuple[int, ...]:
        return self.policy.prefill_weights(layers)

    def attending_layer(self, layers: tuple[int, ...]) -> int | None:
        return self.policy.attending_layer(layers)

    def describe(self) -> str:
        return self.policy.describe()


def recorded(request: Request) -> tuple[Request, Record]:
    """Let a request be watched; return it with the record that its run will fill."""
    layout = request.layout
    beside = layout.cross_entries is not None
    record = Record("cross-attention" if beside else "attention", layout.vision_tokens)
    return replace(request, policy=Recorded(request.policy, record)), record
