"""How much of the attention goes to vision tokens, token by token, while a model answers.

The picture is figure 1 of "Reasoning with Fewer Eyes", for the user's own image and model. The run
is that of `mvw infer`, with the same passes and the same tokens: a recorder is put around the
policy, and asks the engine's attention probe for what each newest query attends to.

Models that read vision by cross-attention have no such share: in those layers all of it goes to
vision. What such a layer adds to the newest token's hidden state is told instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, ClassVar, Protocol

from transformers import DynamicCache

from mvw_cli.bench.documents import AttentionMass
from mvw_cli.engine.cache import sliding_windows
from mvw_cli.engine.layers import cross_attention_layers
from mvw_cli.engine.types import Failed, Request
from mvw_cli.policy import Attend, Decide, Select, Signals, StepView, WithdrawalPolicy
from mvw_cli.session import Session

MOST_LAYERS = 12


class Recorder(Protocol):
    """Keeps what the queries of a run attend to."""

    def signals(self, layers: tuple[int, ...], asked: Signals) -> Signals:
        """Add to what the policy asks for what is to be recorded."""

    def take(self, view: StepView) -> None:
        """Keep what was attended to for one token."""


@dataclass(frozen=True)
class Recorded(WithdrawalPolicy):
    """A policy that decides as it does alone, with a recorder that is shown every token."""

    name: ClassVar[str] = "recorded"

    policy: WithdrawalPolicy
    recorder: Recorder

    def begin(self) -> Decide:
        decide = self.policy.begin()

        def recorded(view: StepView) -> Any:
            self.recorder.take(view)
            return decide(view)

        return recorded

    def begin_prefill(self) -> Select | None:
        return self.policy.begin_prefill()

    def begin_attending(self) -> Attend | None:
        return self.policy.begin_attending()

    def signals(self, layers: tuple[int, ...]) -> Signals:
        return replace(self.recorder.signals(layers, self.policy.signals(layers)), last=True)

    def prefill_weights(self, layers: int) -> tuple[int, ...]:
        return self.policy.prefill_weights(layers)

    def attending_layer(self, layers: tuple[int, ...]) -> int | None:
        return self.policy.attending_layer(layers)

    def describe(self) -> str:
        return self.policy.describe()


@dataclass(slots=True)
class _Masses:
    """Records the mass of each of some layers."""

    layers: tuple[int, ...]
    found: list[list[float]] = field(default_factory=list)
    """By token and layer."""

    def signals(self, layers: tuple[int, ...], asked: Signals) -> Signals:
        return replace(asked, mass=self.layers)

    def take(self, view: StepView) -> None:
        masses = view.masses or {}
        self.found.append([masses.get(layer, 0.0) for layer in self.layers])


def attention_mass(
    session: Session, request: Request, *, tick: Callable[[], None] = lambda: None
) -> AttentionMass:
    """Serve an encoded request alone and measure where its attention goes.

    At most 12 layers are probed, evenly spaced. In each of them a step reads the keys once more and
    makes one weight in float32 for each query head and entry. The first token comes out of the
    prefill, whose last query counts for it.

    Args:
        tick: called before every token; what it raises ends the measurement.

    Raises:
        ModelProblem: the model turned out not to be servable exactly.
        OutOfMemory: the device has too little memory.
        ValueError: the request has no vision tokens.
    """
    if not request.layout.vision_tokens:
        raise ValueError("the request holds no vision tokens")
    model, cross = session.loaded.model, request.layout.cross_entries is not None
    text = model.config.get_text_config()
    holding = (
        tuple(cross_attention_layers(model)) if cross else tuple(range(text.num_hidden_layers))
    )
    chosen = tuple(spread(holding))
    recorder = _Masses(chosen)
    with session.serving() as slots:
        tick()
        events = slots.admit(replace(request, policy=Recorded(request.policy, recorder)))
        while slots.active:
            tick()
            events += slots.step()
            if isinstance(events[-1], Failed):
                raise events[-1].error
    windows = [sliding_windows(DynamicCache(config=text))[layer] for layer in chosen]
    return AttentionMass(
        layers=list(chosen),
        mass=[fmean(masses) for masses in recorder.found],
        by_layer=[list(layer) for layer in zip(*recorder.found, strict=True)],
        vision_share_of_entries=[]
        if cross
        else [_uniform(request, read, windows) for read in range(len(recorder.found))],
        measure="cross-attention" if cross else "attention",
    )


def _uniform(request: Request, read: int, windows: Sequence[int | None]) -> float:
    """Compute the share of vision among what a query may attend to, mean over the layers.

    Args:
        read: generated tokens before the query's own.
        windows: by layer, as `sliding_windows` has them.
    """
    entries = request.layout.entries
    length = len(entries) + read
    starts = [0 if window is None else max(0, length - window) for window in windows]
    return fmean(int(entries[start:].sum()) / (length - start) for start in starts)


def spread(layers: Sequence[int], most: int = MOST_LAYERS) -> list[int]:
    """Choose evenly spaced layers, the first and the last among them; all where they are few."""
    if len(layers) <= most:
        return list(layers)
    return [layers[round(place * (len(layers) - 1) / (most - 1))] for place in range(most)]
