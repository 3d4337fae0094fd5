"""How much of the attention goes to vision tokens, token by token, while a model answers.

The run is that of `mvw infer`, with the same passes and the same tokens: a policy that withdraws
nothing asks the engine's attention probe for what each newest query attends to. Models that read
vision by cross-attention have no such share, as in those layers all of it goes to vision: what such
a layer adds to the newest token's hidden state is told instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import ClassVar

from transformers import DynamicCache

from mvw_cli.bench.documents import AttentionMass
from mvw_cli.engine.cache import layer_kinds
from mvw_cli.engine.layers import cross_attention_layers
from mvw_cli.engine.rows import Span
from mvw_cli.engine.types import Failed, Request
from mvw_cli.policy import Decide, Signals, StepView, WithdrawalPolicy
from mvw_cli.session import Session

MOST_LAYERS = 12


@dataclass(frozen=True)
class _Masses(WithdrawalPolicy):
    """Withdraw nothing, and note the mass of some layers after each token."""

    name: ClassVar[str] = "masses"

    layers: tuple[int, ...]
    found: list[list[float]] = field(default_factory=list)
    """By token and layer."""

    def signals(self, layers: tuple[int, ...]) -> Signals:
        return Signals(mass=self.layers, last=True)

    def begin(self) -> Decide:
        return self._take

    def _take(self, view: StepView) -> None:
        masses = view.masses or {}
        self.found.append([masses.get(layer, 0.0) for layer in self.layers])


def attention_mass(
    session: Session, request: Request, *, tick: Callable[[], None] = lambda: None
) -> AttentionMass:
    """Serve an encoded request alone, without withdrawal, and measure where its attention goes.

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
    kinds = layer_kinds(DynamicCache(config=text), text)
    own = tuple(number for number, kind in enumerate(kinds) if kind.holds)
    holding = tuple(cross_attention_layers(model)) if cross else own
    chosen = tuple(spread(holding))
    recorder = _Masses(chosen)
    with session.serving() as slots:
        tick()
        events = slots.admit(replace(request, policy=recorder))
        while slots.active:
            tick()
            events += slots.step()
            if isinstance(events[-1], Failed):
                raise events[-1].error
    spans = [kinds[layer].span for layer in chosen]
    return AttentionMass(
        layers=list(chosen),
        mass=[fmean(masses) for masses in recorder.found],
        by_layer=[list(layer) for layer in zip(*recorder.found, strict=True)],
        vision_share_of_entries=[]
        if cross
        else [_uniform(request, read, spans) for read in range(len(recorder.found))],
        measure="cross-attention" if cross else "attention",
    )


def _uniform(request: Request, read: int, spans: Sequence[Span | None]) -> float:
    """Compute the share of vision among what a query may attend to, mean over the layers.

    Args:
        read: generated tokens before the query's own.
        spans: by layer, how far back it sees.
    """
    entries = request.layout.entries
    length = len(entries) + read
    starts = [0 if span is None else max(0, span.first(length - 1)) for span in spans]
    return fmean(int(entries[start:].sum()) / (length - start) for start in starts)


def spread(layers: Sequence[int], most: int = MOST_LAYERS) -> list[int]:
    """Choose evenly spaced layers, the first and the last among them; all where they are few."""
    if len(layers) <= most:
        return list(layers)
    return [layers[round(place * (len(layers) - 1) / (most - 1))] for place in range(most)]
