"""The policy `dyvte` and the file of its gates, apart from any model."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hints import parse_hint
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from mvw_cli.calibrate.dyvte.gates import (
    HIDDEN,
    Gate,
    features,
    read_gates,
    scores,
    write_gates,
)
from mvw_cli.calibrate.dyvte.policy import Dyvte
from mvw_cli.errors import ModelProblem
from mvw_cli.policy import LayerView

WIDTH, LAYERS, VISION = 4, 4, 5


def planted(exits: bool) -> Gate:
    """A gate that always says the same."""
    bias = torch.tensor([0.0, 1.0] if exits else [1.0, 0.0])
    return torch.zeros(HIDDEN, 2 * WIDTH), torch.zeros(2, HIDDEN), bias


def looking(unit: int) -> Gate:
    """A gate that says "exit" where this number of what it reads is above 1."""
    hidden, output = torch.zeros(HIDDEN, 2 * WIDTH), torch.zeros(2, HIDDEN)
    hidden[0, unit] = 1
    output[1, 0] = 1
    return hidden, output, torch.tensor([float(functional.gelu(torch.tensor(1.0))), 0.0])


def written(folder: Path, *gates: Gate) -> str:
    path = folder / "gates.safetensors"
    apart = [(one.clone(), two.clone(), three.clone()) for one, two, three in gates]
    write_gates(apart, {"model": "some/model"}, path)
    return str(path)


def view(layer: int, hidden: Tensor | None = None, *, layers: int = LAYERS) -> LayerView:
    """A prompt of 2 text tokens, the vision tokens and 3 text tokens."""
    length = 2 + VISION + 3
    return LayerView(
        layer=layer,
        num_layers=layers,
        present=torch.ones(VISION, dtype=torch.bool),
        grids=None,
        hidden_states=torch.zeros(length, WIDTH) if hidden is None else hidden,
        text=torch.tensor([0, 1, 7, 8, 9]),
        image_end=7,
        weights=None,
    )


def exits(policy: Dyvte, hidden: Tensor | None = None) -> list[int]:
    """Run a prefill; return the layers before which all the vision is sent away."""
    select, found = policy.begin_prefill(), []
    for layer in range(LAYERS):
        said = select(view(layer, hidden))
        if said is not None:
            assert said.dtype == torch.bool and said.shape == (VISION,) and not said.any()
            found.append(layer)
    return found


def test_vision_leaves_before_the_layer_after_the_gate_that_says_so(tmp_path: Path) -> None:
    path = written(tmp_path, planted(False), planted(True), planted(False))
    assert exits(Dyvte(path)) == [2]
    assert exits(Dyvte(written(tmp_path, *[planted(False)] * 3))) == []


def test_min_layer_layers_read_the_vision_at_least(tmp_path: Path) -> None:
    path = written(tmp_path, *[planted(True)] * 3)
    assert exits(Dyvte(path))[0] == 1
    assert exits(Dyvte(path, min_layer=3)) == [3]


def test_a_tie_keeps_the_vision(tmp_path: Path) -> None:
    hidden, output, bias = planted(True)
    assert exits(Dyvte(written(tmp_path, *[(hidden, output, torch.zeros_like(bias))] * 3))) == []


def test_vision_that_has_left_is_not_sent_away_again(tmp_path: Path) -> None:
    select = Dyvte(written(tmp_path, *[planted(True)] * 3)).begin_prefill()
    gone = torch.zeros(VISION, dtype=torch.bool)
    assert select(replace(view(2), present=gone)) is None


@pytest.mark.parametrize(("unit", "row"), [(1, 7), (1, 8), (WIDTH + 1, 9)])
def test_gates_read_the_text_after_the_image(tmp_path: Path, unit: int, row: int) -> None:
    """The first half is the mean of rows 7 and 8, the second half row 9."""
    policy = Dyvte(written(tmp_path, *[looking(unit)] * 3))
    hidden = torch.zeros(10, WIDTH)
    for other in set(range(10)) - ({9} if unit >= WIDTH else {7, 8}):
        hidden[other, 1] = 50.0
    assert exits(policy, hidden) == []
    hidden[row, 1] = 2.5
    assert exits(policy, hidden) == [1, 2, 3]


def test_features_are_the_mean_without_the_last_and_the_last() -> None:
    hidden = torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(0))
    text = torch.tensor([0, 1, 7, 8, 9])
    expected = torch.cat([(hidden[7] + hidden[8]) / 2, hidden[9]])
    torch.testing.assert_close(features(hidden, text, 7), expected)
    beside = torch.cat([hidden[[0, 1, 7, 8]].mean(0), hidden[9]])
    torch.testing.assert_close(features(hidden, text, 0), beside)
    one = torch.cat([hidden[9], hidden[9]])
    torch.testing.assert_close(features(hidden, text, 9), one)


def test_scores_are_those_of_the_published_module() -> None:
    random = torch.Generator().manual_seed(0)
    gate = (
        torch.randn(HIDDEN, 2 * WIDTH, generator=random),
        torch.randn(2, HIDDEN, generator=random),
        torch.randn(2, generator=random),
    )
    module = torch.nn.Sequential(
        torch.nn.Linear(2 * WIDTH, HIDDEN, bias=False),
        torch.nn.GELU(),
        torch.nn.Linear(HIDDEN, 2),
    )
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), gate, strict=True):
            parameter.copy_(value)
        read = torch.randn(3, 2 * WIDTH, generator=random)
        torch.testing.assert_close(scores(gate, read), module(read))


def test_gates_come_in_the_dtype_of_the_hidden_states(tmp_path: Path) -> None:
    path = written(tmp_path, *[planted(True)] * 3)
    assert exits(Dyvte(path), torch.zeros(10, WIDTH, dtype=torch.bfloat16))[0] == 1
    held = read_gates(path)
    like = torch.zeros(1, dtype=torch.bfloat16)
    assert [one.dtype for one in held.gate(0, like)] == [torch.bfloat16] * 3
    assert held.gate(0, like)[0] is held.gate(0, like)[0]


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path = written(tmp_path, *[planted(False)] * 3)
    first = read_gates(path)
    assert read_gates(path) is first
    assert first.about == {"model": "some/model"}
    written(tmp_path, *[planted(True)] * 3)
    os.utime(path, ns=(1, 1))
    assert exits(Dyvte(path))[0] == 1


def test_a_file_that_holds_no_gates_is_refused(tmp_path: Path) -> None:
    refused(Dyvte(str(tmp_path / "missing.safetensors")), "can't be read")
    path = tmp_path / "other.safetensors"
    path.write_text("gates")
    refused(Dyvte(str(path)), "is no file of DyVTE gates")
    save_file({"lm_head.weight": torch.zeros(2, 2)}, path)
    refused(Dyvte(str(path)), "is no file of DyVTE gates")
    shapes = {"hidden.weight": (7, 8), "output.weight": (2, 7), "output.bias": (2,)}
    save_file({f"gates.0.{name}": torch.zeros(shape) for name, shape in shapes.items()}, path)
    refused(Dyvte(str(path)), "is no file of DyVTE gates")


def refused(policy: Dyvte, message: str) -> None:
    with pytest.raises(ModelProblem, match=message) as caught:
        policy.begin_prefill()
    assert caught.value.cause and caught.value.hint
    parse_hint(caught.value.hint)


def test_gates_of_another_model_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, *[planted(True)] * 3)
    select = Dyvte(path).begin_prefill()
    with pytest.raises(ModelProblem, match="another model") as caught:
        select(view(0, layers=LAYERS + 1))
    assert "4 layers of width 4; this model has 5 of width 4" in str(caught.value.cause)
    with pytest.raises(ModelProblem, match="some/model"):
        select(view(0, torch.zeros(10, WIDTH + 2)))
