"""`pulse`: the budget and the choice of one decode step, against a plain reading of the rule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mvw_cli.policies.anneal import Anneal
from mvw_cli.policies.pulse import Pulse
from mvw_cli.policies.stack import stacked
from mvw_cli.policy import AttendView, WithdrawalPolicy


def choose(policy: Pulse, vision: Any, text: Any, present: Any = None) -> list[int]:
    scores = torch.as_tensor(vision, dtype=torch.float32)
    if present is None:
        present = torch.ones(scores.shape[1], dtype=torch.bool)
    scores = scores.masked_fill(~present, -torch.inf)
    others = torch.as_tensor(text, dtype=torch.float32).reshape(len(scores), -1)
    chosen = policy.begin_attending()(AttendView(scores, others, present))
    assert chosen.dtype == torch.bool and chosen.shape == present.shape
    return chosen.nonzero()[:, 0].tolist()


def by_hand(
    policy: Pulse, vision: torch.Tensor, text: torch.Tensor, present: list[bool]
) -> set[int]:
    """The rule as it is written, number by number."""
    there = [token for token, is_there in enumerate(present) if is_there]
    masses = []
    for head in range(len(vision)):
        seen = sum(math.exp(float(vision[head, token]) / policy.tau) for token in there)
        other = sum(math.exp(float(score) / policy.tau) for score in text[head])
        masses.append(seen / (seen + other))
    share = min(max(max(masses), policy.min_ratio), policy.max_ratio)
    means = {token: sum(float(head[token]) for head in vision) for token in there}
    count = max(math.floor(len(there) * share), 1)
    return set(sorted(there, key=lambda token: -means[token])[:count])


@pytest.mark.parametrize("seed", range(20))
def test_it_equals_the_rule(seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    vision, text = (torch.randn(4, n, generator=chance) for n in (50, 30))
    present = torch.rand(50, generator=chance) < 0.8
    for policy in (
        Pulse(tau=1.0, min_ratio=0.02, max_ratio=0.9),
        Pulse(),
        Pulse(tau=0.4, max_ratio=0.1),
    ):
        expected = by_hand(policy, vision, text, present.tolist())
        assert set(choose(policy, vision, text, present)) == expected


def test_the_head_that_looks_most_sets_the_budget_and_the_mean_the_order() -> None:
    vision = [[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, 0.0, 2.0]]
    text = [[50.0], [-50.0]]  # one head looks at text alone, the other at vision alone
    full = Pulse(tau=1.0, min_ratio=0.0, max_ratio=0.5)
    assert choose(full, vision, text) == [0, 3]
    assert choose(full, vision, [[50.0], [50.0]]) == [3]


def test_the_budget_keeps_to_its_bounds_and_is_rounded_down() -> None:
    vision = torch.arange(100.0).repeat(2, 1)
    nothing, everything = [[500.0]] * 2, [[-500.0]] * 2
    policy = Pulse(tau=1.0, min_ratio=0.025, max_ratio=0.049)
    assert choose(policy, vision, nothing) == [98, 99]
    assert choose(policy, vision, everything) == [96, 97, 98, 99]
    assert choose(Pulse(min_ratio=0.0), vision, nothing) == [99]


def test_of_equal_ones_the_first_count_and_the_count_is_exact() -> None:
    assert choose(Pulse(max_ratio=0.5), torch.zeros(3, 8), [[-90.0]] * 3) == [0, 1, 2, 3]


def test_what_is_gone_is_never_chosen() -> None:
    present = torch.tensor([False, True, False, True])
    vision = [[9.0, 1.0, 8.0, 2.0]]
    assert choose(Pulse(min_ratio=1.0, max_ratio=1.0), vision, [[0.0]], present) == [1, 3]
    assert choose(Pulse(max_ratio=0.6), vision, [[-90.0]], present) == [3]
    assert choose(Pulse(), vision, [[0.0]], torch.zeros(4, dtype=torch.bool)) == []


def test_with_cross_attention_there_is_vision_alone_and_the_budget_is_the_largest() -> None:
    assert len(choose(Pulse(max_ratio=0.25), torch.randn(2, 40), torch.empty(2, 0))) == 10


def test_the_layer_that_chooses() -> None:
    assert Pulse().attending_layer(tuple(range(36))) == 17  # as the code of VisionPulse has it
    assert Pulse().attending_layer((3, 8, 13, 18)) == 8
    assert Pulse(layer=10).attending_layer((3, 8, 13, 18)) == 8
    assert Pulse(layer=1).attending_layer((3, 8)) == 3
    assert Pulse(layer=0).attending_layer((0, 1)) == 0
    for layers in ((), (4,)):
        assert Pulse().attending_layer(layers) is None
    assert Pulse(layer=17).attending_layer(tuple(range(10))) is None


def test_a_layer_that_sees_no_vision_any_more_leaves_the_others_all_of_it() -> None:
    behind = [[-math.inf] * 4] * 2
    present = torch.tensor([True, True, False, True])
    assert choose(Pulse(), behind, [[0.0, 1.0]] * 2, present) == [0, 1, 3]


@pytest.mark.parametrize("turned", [False, True])
def test_what_it_leaves_out_can_not_be_ranked(turned: bool) -> None:
    pair: list[WithdrawalPolicy] = [Pulse(), Anneal(end=8)]
    with pytest.raises(ValueError, match="give by=even"):
        stacked(pair[::-1] if turned else pair)
    stacked([Pulse(), Anneal(end=8, by="even")])
