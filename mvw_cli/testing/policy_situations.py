"""Requests made up for a policy: what it sees in their prefill, after their tokens, in their steps.

No model and no cache: numbers that look like a model's, and what a policy has taken away is away in
what it sees next. What a policy says is held against the contract.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor

from mvw_cli.errors import MvwError
from mvw_cli.policy import (
    AttendView,
    Decide,
    Decision,
    LayerView,
    Restore,
    StepView,
    Withdraw,
    WithdrawalPolicy,
    decisions,
)

OUTPUT = ("I ", "see", "</CAP", "TION>", " two", " cats", ".", "", " So", " 2", "</CAPTION>", "!")
_TEXT, _HEADS = 9, 3


@dataclass(frozen=True, slots=True)
class Situation:
    """A request, as far as a policy can tell."""

    title: str
    images: tuple[int, ...] = ()
    """Vision tokens of each."""
    grids: tuple[tuple[int, int], ...] | None = None
    gone: tuple[int, ...] = ()
    """Vision tokens that another policy has taken away before the first layer."""
    cross_attention: bool = False
    """Whether cross-attention layers hold the vision: every fifth, from the fourth on."""
    output: Sequence[str] = field(default=OUTPUT)

    @property
    def tokens(self) -> int:
        return sum(self.images)

    def layers_of(self, num_layers: int) -> tuple[int, ...]:
        """Which of a model's layers hold vision after the prefill."""
        if not self.tokens:
            return ()
        return tuple(range(3, num_layers, 5) if self.cross_attention else range(num_layers))

    def present(self) -> Tensor:
        """Vision tokens that are there when the prefill begins: # (N,) bool."""
        found = torch.ones(self.tokens, dtype=torch.bool)
        found[list(self.gone)] = False
        return found


SITUATIONS = (
    Situation("one image", images=(12,), grids=((3, 4),)),
    Situation("two images, with no grid and tokens gone", images=(7, 6), gone=(0, 3, 9)),
    Situation("two images read by cross-attention", images=(5, 5), cross_attention=True),
    Situation("one vision token", images=(1,), grids=((1, 1),)),
    Situation("no image"),
)


def said(
    policy: WithdrawalPolicy, situation: Situation, num_layers: int
) -> Iterator[tuple[StepView, object]]:
    """Write an output token by token; yield what the policy saw and what it said."""
    held = situation.layers_of(num_layers)
    asked = policy.signals(held)
    there = {layer: situation.present() for layer in held}
    decide = saying(policy)
    for step in range(1, len(situation.output) + 1):
        weights = {
            layer: _weights(situation, layer + 100 * step) * there[layer] / step
            for layer in {*asked.mass, *asked.weights} & set(held)
        }
        masses = [float(weights[layer].sum()) for layer in asked.mass if layer in weights]
        view = StepView(
            step=step,
            token_ids=list(range(step)),
            text="".join(situation.output[:step]),
            vision_tokens=situation.tokens,
            layers=held,
            images=situation.images,
            entropy=step * 7 % 5 / 2 if asked.entropy else None,
            mass=sum(masses) / len(masses) if masses else None,
            weights={layer: weights[layer] for layer in asked.weights if layer in weights} or None,
        )
        answer = decide(view)
        yield view, answer
        for one, layer in product(heard(answer), held):
            if isinstance(one, Restore):
                there[layer] = situation.present()
            elif one.keep is None:
                there[layer] = torch.zeros_like(there[layer])
            elif layer in one.keep and one.keep[layer].shape == there[layer].shape:
                there[layer] = there[layer] & one.keep[layer]


def layer_view(
    policy: WithdrawalPolicy,
    situation: Situation,
    layer: int,
    num_layers: int,
    hidden: int,
    present: Tensor,
) -> LayerView:
    """Write what a policy sees before one layer of the prefill."""
    generator = torch.Generator().manual_seed(layer)
    tokens = 0 if situation.cross_attention else situation.tokens
    length = _TEXT + tokens
    places = torch.arange(length)
    weighed = layer in policy.prefill_weights(num_layers) and any(
        held < layer for held in situation.layers_of(num_layers)
    )
    return LayerView(
        layer=layer,
        num_layers=num_layers,
        present=present,
        grids=situation.grids,
        hidden_states=torch.randn(length, hidden, generator=generator),
        text=torch.cat([places[:2], places[2 + tokens :]]) if tokens else places,
        image_end=2 + tokens if tokens else 0,
        weights=_weights(situation, layer) * present if weighed else None,
        images=situation.images,
    )


def prefill(
    policy: WithdrawalPolicy, situation: Situation, num_layers: int, hidden: int
) -> Iterator[tuple[LayerView, Tensor | None]]:
    """Ask a policy before each layer of a prefill; yield what it saw and what it said.

    A policy may refuse a model whose vision lies in cross-attention layers; then there is no more.
    """
    select = policy.begin_prefill()
    present = situation.present()
    for layer in range(num_layers if select else 0):
        view = layer_view(policy, situation, layer, num_layers, hidden, present.clone())
        try:
            chosen = select(view) if select else None
        except MvwError:
            if situation.cross_attention:
                return
            raise
        yield view, chosen
        # What is wrong is found elsewhere.
        if isinstance(chosen, Tensor) and chosen.shape == present.shape:
            present = present & chosen


def attend_views(situation: Situation, steps: int = 4) -> Iterator[AttendView]:
    """Write what a policy sees in some decode steps, at the layer that chooses."""
    present = situation.present()
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        vision = 3 * torch.randn(_HEADS, situation.tokens, generator=generator)
        text = torch.randn(
            _HEADS, 0 if situation.cross_attention else _TEXT + step, generator=generator
        )
        yield AttendView(vision.masked_fill(~present, -torch.inf), text, present.clone())


def saying(policy: WithdrawalPolicy) -> Decide:
    """Start a request; a policy that changes what others say gets one to change."""
    if type(policy).after is WithdrawalPolicy.after:
        return policy.begin()
    return policy.after(lambda view: Withdraw() if view.step == 3 else None)


def heard(answer: Any) -> list[Decision]:
    """Take what is a decision out of what a policy has said; what is none is left out."""
    try:
        return [one for one in decisions(answer) if isinstance(one, Withdraw | Restore)]
    except TypeError:
        return []


def _weights(situation: Situation, seed: int) -> Tensor:
    """Attention weights that add up to less than 1: # (N,) float32."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(situation.tokens + _TEXT, generator=generator)
    return scores.softmax(0)[: situation.tokens]


# -- what it may say ----------------------------------------------------------------------------


def check_decisions(answer: object, view: StepView) -> None:
    """Assert that what a policy has said after a token can be carried out."""
    if answer is None:
        return
    several = answer if isinstance(answer, list | tuple) else [answer]
    for one in several:
        assert isinstance(one, Withdraw | Restore), (
            f"after token {view.step} it says {one!r}: return Withdraw(), Restore() or None"
        )
        for layer, mask in (one.keep or {}).items() if isinstance(one, Withdraw) else ():
            where = f"after token {view.step}, at layer {layer}"
            assert layer in view.layers, f"{where}: it holds no vision"
            check_mask(mask, torch.ones(view.vision_tokens, dtype=torch.bool), where)


def check_mask(mask: Tensor, present: Tensor, where: str) -> None:
    """Assert that a mask is one of the vision tokens that are there.

    present: # (N,) bool
    """
    told = f"{where}: {type(mask).__name__} instead of a bool tensor of shape ({len(present)},)"
    assert isinstance(mask, Tensor), told
    assert mask.dtype == torch.bool, f"{where}: {mask.dtype} instead of torch.bool"
    assert mask.shape == present.shape, f"{where}: {tuple(mask.shape)} for {len(present)} tokens"
    assert not (mask & ~present).any(), f"{where}: it names what is gone; & view.present mends it"


def plain(value: Any) -> Any:
    """Write a tensor as a list; leave the rest."""
    return value.tolist() if hasattr(value, "tolist") else value
