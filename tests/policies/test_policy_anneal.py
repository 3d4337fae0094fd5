"""`anneal`: the schedule, which tokens stay, and that what is gone never comes back."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from walking import kept, walk

from mvw_cli.policies.anneal import Anneal, spread_order
from mvw_cli.policy import Signals, Withdraw

LAYERS = (0, 1, 2)


def test_the_share_is_the_formula() -> None:
    policy = Anneal(end=40, start=8, every=1, depth=0.5)
    assert policy.share(0.0, 8) == 1.0
    assert policy.share(0.0, 24) == 0.5
    assert policy.share(1.0, 16) == 0.5  # twice as fast at the deepest layer
    assert policy.share(1.0, 24) == 0.0
    assert policy.share(0.5, 20) == 0.5  # 1 - 12 / (32 * 0.75)
    assert policy.share(0.0, 39) == pytest.approx(1 / 32)
    assert policy.share(0.0, 40) == 0.0


@pytest.mark.parametrize("depth", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("every", [1, 5])
def test_the_share_never_rises_in_layer_or_token(depth: float, every: int) -> None:
    policy = Anneal(end=50, start=7, every=every, depth=depth)
    places = [place / 10 for place in range(11)]
    for step in range(1, 60):
        row = [policy.share(place, step) for place in places]
        assert row == sorted(row, reverse=True)
        assert all(policy.share(place, step + 1) <= policy.share(place, step) for place in places)
        assert depth > 0 or len(set(row)) == 1


def test_tokens_thin_out_by_layer_and_the_last_thinning_takes_all() -> None:
    policy = Anneal(end=8, every=2, depth=0.5, by="even")
    said = walk(policy, ["a"] * 12, vision_tokens=8, layers=LAYERS)
    assert list(said) == [2, 4, 6, 8]
    counts = [
        {layer: len(stay) for layer, stay in kept(said[step][0]).items()} for step in (2, 4, 6)
    ]
    # 1 - t / 8, 1 - t / 6 and 1 - t / 4 of 8 tokens, rounded up.
    assert counts == [{0: 6, 1: 6, 2: 4}, {0: 4, 1: 3, 2: 0}, {0: 2, 1: 0}]
    assert said[8] == [Withdraw()]


def test_even_ones_are_spread_and_nested() -> None:
    assert spread_order(8) == (0, 4, 2, 6, 1, 5, 3, 7)
    assert spread_order(6) == (0, 4, 2, 1, 5, 3)
    assert spread_order(1) == (0,) and spread_order(0) == ()
    for count in (5, 64, 577):
        order = spread_order(count)
        assert sorted(order) == list(range(count))
        for some in (count // 4, count // 2):
            edges = [-1, *sorted(order[:some]), count]
            widest = max(after - before for before, after in pairwise(edges))
            assert widest <= 2 * -(-count // some) + 1


def test_by_attention_each_layer_keeps_what_it_looks_at_then() -> None:
    policy = Anneal(end=4, every=1, depth=0)
    assert policy.signals(LAYERS) == Signals(weights=LAYERS)
    assert Anneal(end=4, by="even").signals(LAYERS) == Signals()
    rising, falling = torch.arange(4.0) / 10, torch.arange(4.0, 0, -1) / 10
    each = [
        {"weights": {0: rising, 5: falling}},
        {"weights": {0: falling, 5: falling}},
        {"weights": {0: torch.ones(4), 5: torch.ones(4)}},
        {"weights": {}},
    ]
    said = walk(policy, ["a"] * 4, each, vision_tokens=4, layers=(0, 5))
    assert kept(said[1][0]) == {0: [1, 2, 3], 5: [0, 1, 2]}
    assert kept(said[2][0]) == {0: [1, 2], 5: [0, 1]}  # 0 is gone, whatever its weight
    assert kept(said[3][0]) == {0: [1], 5: [0]}  # of equal ones the first
    assert said[4] == [Withdraw()]


def test_nothing_ever_comes_back() -> None:
    chance = torch.Generator().manual_seed(0)
    for policy in (Anneal(end=30, every=3, depth=0.7), Anneal(end=30, every=3, by="even")):
        each = [
            {"weights": {layer: torch.rand(37, generator=chance) for layer in LAYERS}}
            for _ in range(30)
        ]
        said = walk(policy, ["a"] * 30, each, vision_tokens=37, layers=LAYERS)
        before = {layer: set(range(37)) for layer in LAYERS}
        for step, (decision,) in said.items():
            if step == 30:
                assert decision == Withdraw()
                break
            for layer, stay in kept(decision).items():
                assert set(stay) < before[layer]
                before[layer] = set(stay)


def test_a_thinning_without_weights_is_made_up_for() -> None:
    policy = Anneal(end=8, every=2, depth=0)
    weights = {0: torch.arange(8.0)}
    each = [{"weights": None if step < 3 else weights} for step in range(1, 9)]
    said = walk(policy, ["a"] * 8, each, vision_tokens=8, layers=(0,))
    assert list(said) == [3, 4, 6, 8]
    assert kept(said[3][0]) == {0: [2, 3, 4, 5, 6, 7]}
