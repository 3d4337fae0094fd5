"""What vtw, fastv, random and downsample choose, apart from any model; and which go together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hints import parse_hint

from mvw_cli.calibrate.dyvte.policy import Dyvte
from mvw_cli.errors import UsageProblem
from mvw_cli.policies.downsample import Downsample, coarser
from mvw_cli.policies.fastv import FastV
from mvw_cli.policies.layers import AtLayer, kept_count
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.random import Random
from mvw_cli.policies.stack import stacked
from mvw_cli.policies.vtw import Vtw
from mvw_cli.policy import LayerView, WithdrawalPolicy


def view(layer: int, present: torch.Tensor, **given: Any) -> LayerView:
    tokens = len(present)
    defaults: dict[str, Any] = {
        "num_layers": 8,
        "grids": None,
        "hidden_states": torch.zeros(tokens + 2, 4),
        "text": torch.tensor([0, tokens + 1]),
        "image_end": tokens + 1,
        "weights": None,
    }
    return LayerView(layer=layer, present=present, **{**defaults, **given})


def choices(
    policy: WithdrawalPolicy, tokens: int, gone: tuple[int, ...] = (), **given: Any
) -> dict[int, list[int]]:
    """By layer at which the policy says something, the vision tokens that stay."""
    select, said = policy.begin_prefill(), {}
    assert select is not None
    present = torch.ones(tokens, dtype=torch.bool)
    present[list(gone)] = False
    for layer in range(8):
        chosen = select(view(layer, present.clone(), **given))
        if chosen is not None:
            present = present & chosen
            said[layer] = chosen.nonzero()[:, 0].tolist()
    return said


# -- vtw ----------------------------------------------------------------------------------------


def test_vtw_takes_all_away_before_its_layer() -> None:
    assert choices(Vtw(layer=3), 5) == {3: []}
    assert choices(Vtw(layer=7), 5, gone=(1, 2)) == {7: []}
    assert choices(Vtw(layer=3), 0) == {}


# -- fastv --------------------------------------------------------------------------------------


def test_fastv_keeps_those_with_the_highest_weights_in_the_layer_before() -> None:
    weights = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    assert FastV(layer=2, keep=0.4).prefill_weights(8) == (2,)
    assert choices(FastV(layer=2, keep=0.4), 5, weights=weights) == {2: [1, 3]}
    assert choices(FastV(layer=5, keep=0.6), 5, weights=weights) == {5: [1, 3, 4]}
    assert choices(FastV(layer=5, keep=1), 5, weights=weights) == {5: [0, 1, 2, 3, 4]}


def test_fastv_gives_equal_weights_to_the_lower_index() -> None:
    weights = torch.tensor([0.1, 0.2, 0.2, 0.2, 0.2, 0.1])
    assert choices(FastV(layer=1, keep=0.5), 6, weights=weights) == {1: [1, 2, 3]}
    assert choices(FastV(layer=1, keep=0.25), 200, weights=torch.zeros(200))[1] == list(range(50))


def test_fastv_chooses_among_those_that_are_left() -> None:
    weights = torch.tensor([0.9, 0.8, 0.0, 0.0, 0.2, 0.1])
    left = choices(FastV(layer=1, keep=0.5), 6, gone=(0, 1), weights=weights)
    assert left == {1: [2, 4, 5]}
    assert choices(FastV(layer=1, keep=0.9), 6, gone=(0, 1), weights=weights) == {1: [2, 3, 4, 5]}


def test_fastv_without_a_layer_before_that_reads_vision_is_refused() -> None:
    """Mllama's first cross-attention layer is the fourth."""
    with pytest.raises(UsageProblem) as error:
        choices(FastV(layer=2, keep=0.5), 5)
    assert error.value.message == "Policy `fastv` has nothing to rank by at layer 2"
    assert error.value.cause == "no layer before it reads the vision tokens"


# -- random -------------------------------------------------------------------------------------


def test_any_version_draws_the_same() -> None:
    """Figures of published runs stay reproducible only as long as this one stays."""
    assert choices(Random(keep=0.3), 20) == {0: [2, 3, 5, 7, 12, 15]}
    assert choices(Random(keep=0.3, seed=1), 20) == {0: [0, 8, 9, 13, 16, 19]}


def test_a_smaller_part_is_drawn_from_the_larger_one() -> None:
    parts = [set(choices(Random(keep=keep), 64)[0]) for keep in (0.1, 0.3, 0.6, 1.0)]
    assert parts[0] < parts[1] < parts[2] < parts[3]


def test_random_draws_among_those_that_are_left() -> None:
    left = choices(Random(keep=0.5), 10, gone=(0, 1, 2, 3))[0]
    assert len(left) == 5 and min(left) >= 4


# -- downsample ---------------------------------------------------------------------------------


def test_downsample_keeps_rows_and_columns() -> None:
    # Rows 1 and 3 of 4, columns 1, 3 and 5 of 6: the middles of equal stretches.
    kept_ = choices(Downsample(keep=0.25), 24, grids=((4, 6),))
    assert kept_ == {0: [6 + 1, 6 + 3, 6 + 5, 18 + 1, 18 + 3, 18 + 5]}


def test_downsample_treats_each_image_by_its_own_grid() -> None:
    found = choices(Downsample(keep=0.25, layer=2), 24, grids=((2, 2), (4, 5)))
    # One of 2 × 2; of 4 × 5 the rows 1 and 3, the columns 1 and 3.
    assert found == {2: [3, 4 + 6, 4 + 8, 4 + 16, 4 + 18]}


@pytest.mark.parametrize(
    ("rows", "columns", "keep", "grid"),
    [
        (24, 24, 0.1, (7, 8)),  # 57.6 wanted
        (16, 16, 1.0, (16, 16)),
        (1, 100, 0.25, (1, 25)),
        (100, 1, 0.25, (25, 1)),
        (3, 3, 0.01, (1, 1)),
        (37, 53, 0.3, (21, 28)),  # 588.3 wanted, 588 found
        (3, 10, 0.25, (2, 4)),  # 1 x 7 is as near in size
        (4, 5, 0.25, (2, 2)),  # 5 wanted; 2 x 3 is as near, and as far from the shape
    ],
)
def test_the_coarser_grid(rows: int, columns: int, keep: float, grid: tuple[int, int]) -> None:
    assert coarser(rows, columns, keep) == grid


def test_downsample_without_grids_is_even_in_each_image() -> None:
    assert choices(Downsample(keep=0.25), 12) == {0: [2, 6, 10]}
    found = choices(Downsample(keep=0.25), 14, images=(12, 2))
    assert found == {0: [2, 6, 10, 13]}


# -- all of them --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "keep", "count"),
    [(576, 0.5, 288), (5, 0.5, 3), (10, 0.25, 3), (30, 0.1, 3), (9, 0.001, 1), (1, 1.0, 1)],
)
def test_how_many_stay(tokens: int, keep: float, count: int) -> None:
    assert kept_count(tokens, keep) == count
    assert len(choices(Random(keep=keep), tokens)[0]) == count


@pytest.mark.parametrize("policy", [Vtw(layer=8), FastV(layer=40, keep=0.5)])
def test_a_layer_that_the_model_lacks_is_the_users_error(policy: AtLayer) -> None:
    with pytest.raises(UsageProblem) as error:
        choices(policy, 5)
    assert error.value.message == f"Policy `{policy.name}` can't act at layer {policy.layer}"
    assert error.value.cause == "the model has 8 decoder layers, 0 to 7"
    assert error.value.hint is not None
    parse_hint(error.value.hint)
    assert policy.prefill_weights(8) == ()


# -- together -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policies",
    [
        (Vtw(layer=6), Mvw(m=16)),
        (FastV(layer=2, keep=0.5), Vtw(layer=6)),
        (Vtw(layer=6), FastV(layer=2, keep=0.5)),
        (Downsample(keep=0.5), FastV(layer=2, keep=0.25), Vtw(layer=6), Mvw(m=16)),
        (FastV(layer=2, keep=0.25), Downsample(keep=0.5)),
        (Random(keep=0.5, layer=2), FastV(layer=2, keep=0.25)),
    ],
)
def test_these_go_together(policies: tuple[WithdrawalPolicy, ...]) -> None:
    assert stacked(policies).policies == policies  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        (
            (Vtw(layer=4), FastV(layer=4, keep=0.5)),
            "vtw keeps 0 of the vision at layer 4, and fastv at layer 4 finds nothing to drop",
        ),
        (
            (FastV(layer=4, keep=0.5), Vtw(layer=4)),
            "fastv keeps 0.5 of the vision at layer 4, and vtw at layer 4 takes away all at once "
            "what it keeps",
        ),
        (
            (Random(keep=0.5), FastV(layer=2, keep=0.5)),
            "random keeps 0.5 of the vision at layer 0, and fastv at layer 2 finds nothing to drop",
        ),
        (
            (Downsample(keep=0.25, layer=3), FastV(layer=2, keep=0.5)),
            "fastv keeps 0.5 of the vision at layer 2, and downsample at layer 3 finds no even "
            "grid",
        ),
        ((Vtw(layer=4), Vtw(layer=6)), "vtw is given twice"),
        (
            (Dyvte(gates="gates.safetensors"), Vtw(layer=4)),
            "dyvte and vtw both choose the layer at which the vision leaves",
        ),
        (
            (Vtw(layer=4), Dyvte(gates="gates.safetensors")),
            "vtw and dyvte both choose the layer at which the vision leaves",
        ),
    ],
)
def test_these_do_not(policies: tuple[WithdrawalPolicy, ...], said: str) -> None:
    with pytest.raises(ValueError) as error:
        stacked(policies)
    assert str(error.value) == said


def test_each_chooses_among_what_is_left() -> None:
    weights = torch.arange(24.0)
    policy = stacked([Downsample(keep=0.25), FastV(layer=2, keep=0.125), Vtw(layer=5)])
    found = choices(policy, 24, grids=((4, 6),), weights=weights)
    assert found == {0: [7, 9, 11, 19, 21, 23], 2: [19, 21, 23], 5: []}
