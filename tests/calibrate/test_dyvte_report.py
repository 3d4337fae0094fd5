"""The figures on held-out questions, against ones counted by hand; what they are put into."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from sessions import tiny

from mvw_cli.bench.stats import wilson
from mvw_cli.calibrate.dyvte.report import (
    Found,
    evaluate,
    tables,
    verdict,
    vision_share,
    withdrawn_share,
)
from mvw_cli.calibrate.dyvte.training import Dataset
from mvw_cli.calibrate.search import Outcome
from mvw_cli.cost.flops import flops_of
from mvw_cli.plugins import load_adapter

# Four questions, three gates: four layers.
LABELS = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1]])
SAID = torch.tensor([[0, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0]]).bool()
TRAINING = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 0, 0]])
TABLE = Dataset(
    tuple({"key": f"{row}", "sha256": [f"{row}"]} for row in range(4)),
    torch.zeros(4, 3, 2),
    torch.tensor([[0.5, 1.0, 1.0], [0.25, 0.75, 1.0], [0.0, 0.5, 0.5], [1.0, 1.0, 1.0]]),
    torch.zeros(4, 3),
    torch.zeros(4),
)


def found(shares: Any = (0.8, 0.8, 0.8, 0.8)) -> Found:
    return evaluate(SAID, TABLE, LABELS, TRAINING, shares)


def test_gates_are_judged_beside_the_majority() -> None:
    first, second, third = found().gates
    assert (first.layer, first.accuracy, first.majority, first.may_exit) == (1, 1.0, 0.75, 0.25)
    assert (second.layer, second.accuracy, second.majority) == (2, 0.5, 0.5)
    # Two of three labels in training are 1, so that the majority says 1 here.
    assert (third.accuracy, third.majority) == (0.5, 0.75)
    assert third.accuracy_interval_95 == wilson(2, 4)


def test_exits_are_the_first_that_a_gate_says() -> None:
    exits = found().exits
    assert list(exits.layers.items()) == [("1", 1), ("2", 2), ("never", 1)]
    assert exits.agreement == pytest.approx((1.0 + 0.75 + 1.0 + 1.0) / 4)
    assert exits.allowed == 0.75  # the second question should have stayed for a layer more
    assert exits.layers_saved == pytest.approx((0.5 + 0.5 + 0 + 0.75) / 4)
    assert exits.prefill_saved == pytest.approx(0.8 * exits.layers_saved)
    uncounted = found(None).exits
    assert uncounted.prefill_saved is None and uncounted.layers_saved > 0


def test_earliest_allowed_and_fixed_exits_stand_beside_them() -> None:
    whole = found()
    assert whole.earliest_allowed.layers == {"1": 1, "2": 1, "3": 1, "never": 1}
    assert whole.earliest_allowed.allowed == 1
    assert whole.fixed["3"].layers == {"3": 4}
    assert whole.fixed["3"].agreement == pytest.approx(3.5 / 4)
    assert whole.fixed["3"].allowed == 0.75


@pytest.mark.parametrize(
    ("exit_layer", "cross_layers", "share"),
    [(4, (), 0.0), (1, (), 0.75), (3, (), 0.25), (1, (1, 3), 1.0), (2, (1, 3), 0.5)],
)
def test_share_of_the_layers_past_an_exit(
    exit_layer: int, cross_layers: tuple[int, ...], share: float
) -> None:
    assert withdrawn_share(exit_layer, 4, cross_layers) == share


@pytest.mark.parametrize(("name", "vision"), [("hf", 16), ("llava-cot", 20)])
def test_the_share_of_vision_is_counted_as_the_profiler_counts_it(name: str, vision: int) -> None:
    session = tiny(name)
    flops = flops_of(load_adapter(name), session.loaded.model.config)
    assert flops.tower is not None
    whole = flops.prefill(30, vision) - flops.tower.flops(vision)
    share = vision_share(flops, 30, vision)
    assert share == pytest.approx(1 - flops.prefill(30, 0) / whole) and 0 < share < 1
    with_mlp = vision_share(flops, 30, vision, keep_mlp=True)
    assert 0 < with_mlp < share if name == "llava-cot" else with_mlp == share


def test_verdicts() -> None:
    whole = found()
    text = " ".join(verdict(whole, 4, learnable=True))
    assert "No gate is right more often" in text
    assert "leaves on 3 of 4 held-out questions and saves 35 %" in text
    sure = replace(whole.gates[0], accuracy_interval_95=(0.9, 1.0))
    told = verdict(replace(whole, gates=[sure]), 4, learnable=True)
    assert told[0].startswith("Before layer 1 the gates")
    nothing = evaluate(SAID & False, TABLE, LABELS * 0, TRAINING * 0, None)
    first, second = verdict(nothing, 4, learnable=False)
    assert "nothing for gates to learn" in first
    assert second == "On no held-out question does the vision leave."


def test_the_table_holds_the_figures() -> None:
    figures = asdict(found())
    names = ("held_out_questions", "held_out_images", "training_questions", "training_images")
    outcome = Outcome(
        figures.pop("gates"), {}, "It is so.", [], {**figures, "data": dict.fromkeys(names, 4)}
    )
    [exits] = tables(outcome)
    assert "['the gates', '93.8 %', '75 %', '43.8 %', '35 %']" in repr(exits)
    assert "['layer 3', '87.5 %', '75 %', '25 %', '20 %']" in repr(exits)
