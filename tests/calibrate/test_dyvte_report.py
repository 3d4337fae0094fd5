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
    Prefill,
    charts,
    evaluate,
    prefill,
    tables,
    verdict,
    withdrawn_share,
)
from mvw_cli.calibrate.dyvte.training import Dataset
from mvw_cli.calibrate.search import Outcome
from mvw_cli.cost.flops import flops_of
from mvw_cli.plugins import load_adapter
from mvw_cli.render.svg import svg_file

# Four questions, three gates: four layers.
LABELS = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1]])
SAID = torch.tensor([[0, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0]]).bool()
TRAINING = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 0, 0]])
TABLE = Dataset(
    tuple({"key": f"{row}", "sha256": [f"{row}"]} for row in range(4)),
    torch.zeros(4, 3, 2),
    torch.tensor([[0.5, 1.0, 1.0], [0.25, 0.75, 1.0], [0.0, 0.5, 0.5], [1.0, 1.0, 1.0]]),
    torch.tensor([[2.0, 1.0, 1.0], [4.0, 3.0, 1.0], [8.0, 4.0, 3.0], [1.0, 1.0, 1.0]]),
    torch.tensor([1.0, 1.0, 1.0, 1.0]),
)
COSTS = [Prefill(full=100.0, text=20.0, encoder=100.0)] * 4


def found(said: Any = SAID, **given: Any) -> Found:
    return evaluate(said, TABLE, LABELS, TRAINING, given.pop("costs", COSTS), **given)


def test_gates_are_judged_beside_the_majority() -> None:
    first, second, third = found().gates
    assert (first.layer, first.accuracy, first.majority, first.may_exit) == (1, 1.0, 0.75, 0.25)
    assert (second.layer, second.accuracy, second.majority) == (2, 0.5, 0.5)
    assert (second.exits, second.wrong_exits) == (0.5, 0.25)
    # Two of three labels in training are 1, so that the majority says 1 here.
    assert (third.accuracy, third.majority) == (0.5, 0.75)
    assert third.may_exit_training == pytest.approx(2 / 3)
    assert third.accuracy_interval_95 == wilson(2, 4)
    assert second.agreement == pytest.approx((1.0 + 0.75 + 0.5 + 1.0) / 4)


def test_exits_are_the_first_that_a_gate_says() -> None:
    exits = found().exits
    assert exits.layers == {"1": 1, "2": 2, "never": 1}
    assert list(exits.layers) == ["1", "2", "never"]
    assert exits.agreement == pytest.approx((1.0 + 0.75 + 1.0 + 1.0) / 4)
    assert exits.allowed == 0.75  # the second question should have stayed for a layer more
    assert exits.loss_nats == pytest.approx((1 + 3 + 1 + 1) / 4)
    assert exits.layers_saved == pytest.approx((0.5 + 0.5 + 0 + 0.75) / 4)
    assert exits.prefill_saved == pytest.approx(0.8 * exits.layers_saved)
    assert exits.prefill_saved_with_encoder == pytest.approx(0.4 * exits.layers_saved)


def test_earliest_allowed_and_fixed_exits_stand_beside_them() -> None:
    whole = found()
    assert whole.earliest_allowed.layers == {"1": 1, "2": 1, "3": 1, "never": 1}
    assert whole.earliest_allowed.allowed == 1
    assert whole.fixed["3"].layers == {"3": 4}
    assert whole.fixed["3"].agreement == pytest.approx(3.5 / 4)
    assert whole.fixed["3"].allowed == 0.75
    assert whole.full_loss_nats == 1


def test_what_cant_be_counted_is_not_told() -> None:
    exits = found(costs=None).exits
    assert exits.prefill_saved is None and exits.prefill_saved_with_encoder is None
    assert exits.layers_saved > 0


@pytest.mark.parametrize(
    ("exit_layer", "cross_layers", "share"),
    [(None, (), 0.0), (1, (), 0.75), (3, (), 0.25), (1, (1, 3), 1.0), (2, (1, 3), 0.5)],
)
def test_share_of_the_layers_past_an_exit(
    exit_layer: int | None, cross_layers: tuple[int, ...], share: float
) -> None:
    assert withdrawn_share(exit_layer, 4, cross_layers) == share


@pytest.mark.parametrize("name", ["hf", "llava-cot"])
def test_prefill_is_counted_as_the_profiler_counts_it(name: str) -> None:
    session = tiny(name)
    flops = flops_of(load_adapter(name), session.loaded.model.config)
    vision = 16 if name == "hf" else 20
    cost = prefill(flops, 30, vision)
    assert cost.full + cost.encoder == pytest.approx(flops.prefill(30, vision))
    assert cost.text == flops.prefill(30, 0) < cost.full
    assert cost.saved(0) == 0 and cost.saved(1) == pytest.approx(1 - cost.text / cost.full)
    assert 0 < cost.saved_of_all(1) < cost.saved(1)
    with_mlp = prefill(flops, 30, vision, keep_mlp=True)
    if name == "llava-cot":
        assert cost.text < with_mlp.text < cost.full
    else:
        assert with_mlp == cost


def test_verdicts() -> None:
    whole = found()
    text = " ".join(verdict(whole, 4))
    assert "No gate is right more often" in text
    assert "leaves on 3 of 4 held-out questions and saves 35 %" in text
    sure = replace(whole.gates[0], accuracy_interval_95=(0.9, 1.0))
    assert verdict(replace(whole, gates=[sure]), 4)[0].startswith("Before layer 1 the gates")
    nothing = evaluate(SAID & False, TABLE, LABELS * 0, TRAINING * 0, None)
    first, second = verdict(nothing, 4)
    assert "nothing for gates to learn" in first
    assert second == "On no held-out question does the vision leave."


def test_tables_and_charts_hold_the_figures() -> None:
    figures = asdict(found())
    data = {
        "held_out_questions": 4,
        "held_out_images": 4,
        "training_questions": 3,
        "training_images": 3,
    }
    outcome = Outcome(figures.pop("gates"), {}, "It is so.", [], {**figures, "data": data})
    [exits] = tables(outcome, whole=False)
    assert "['the gates', '93.8 %', '75 %', '1.50', '43.8 %', '35 %', '17.5 %']" in repr(exits)
    assert "4 questions on 4 images held out" in repr(exits)
    also, gates = tables(outcome, whole=True)
    assert also == exits and "'100 %'" in repr(gates.parts)
    accuracy, chosen = charts(outcome)
    assert accuracy.lines[1].ys == [100.0, 50.0, 50.0]
    assert chosen.lines[1].ys == [25.0, 75.0, 75.0]
    assert chosen.lines[2].ys == [25.0, 50.0, 75.0]
    assert "<svg" in svg_file(accuracy)
