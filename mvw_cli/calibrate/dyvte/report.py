"""What trained gates are worth on images they have not seen: the figures, and how they are shown.

A gate that is no better than always saying what is most often right has learnt nothing; so that
share is told with every accuracy. With the gates' exits come two others: the first layer at which
the label allows it, which no gate can know, and each fixed layer, which is what `vtw` does.

What an exit saves is counted in FLOPs of the language model's prefill. A layer's share of what
vision costs is taken to be the same for all layers that read vision, which is true of all but a few
dense first layers of mixtures of experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mvw_cli.bench.stats import wilson
from mvw_cli.calibrate.dyvte.gates import scores
from mvw_cli.calibrate.dyvte.training import Dataset
from mvw_cli.calibrate.search import Outcome
from mvw_cli.cost.flops import Flops
from mvw_cli.render.chart import Chart, Line
from mvw_cli.render.sections import Section, Sentence, Table
from mvw_cli.text import MISSING, percent

_SHOWN = 8
"""Fixed layers that the table has."""


def vision_share(flops: Flops, text: int, vision: int, *, keep_mlp: bool = False) -> float:
    """Compute the part of the language model's prefill FLOPs that its vision costs.

    Args:
        text: prompt tokens apart from the vision.
        keep_mlp: whether cross-attention layers without vision keep their gated MLP.
    """
    encoder = 0.0 if flops.tower is None else float(flops.tower.flops(vision))
    whole = flops.prefill(text, vision) - encoder
    blind = flops.prefill(text, 0)
    if keep_mlp and any(layer.cross for layer in flops.shape.layers):
        blind += 2.0 * (flops.cross - flops.cross_attention) * text
    return (whole - blind) / whole


def withdrawn_share(exit_layer: int, layers: int, cross_layers: tuple[int, ...]) -> float:
    """Compute the part of the layers that read vision and are past the exit.

    Args:
        exit_layer: the first layer without vision; `layers` where it stays.
        cross_layers: cross-attention layers, which alone read the vision.
    """
    reading = cross_layers or tuple(range(layers))
    return sum(layer >= exit_layer for layer in reading) / len(reading)


@dataclass(frozen=True, slots=True)
class GateFigures:
    """One gate on the held-out questions."""

    layer: int
    """The vision would leave before this layer; the gate reads the one before."""
    may_exit: float
    """Share of the questions whose label is 1."""
    majority: float
    """Share of the label that is most frequent in training: what a constant answer gets right."""
    accuracy: float
    accuracy_interval_95: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Exits:
    """What one way to choose exits gives on the held-out questions."""

    layers: dict[str, int]
    """Questions by the first layer without vision; `never` where the vision stays."""
    agreement: float
    """Share of next tokens that stay the likeliest, mean over the questions."""
    allowed: float
    """Share of the questions whose exit has the label 1, or that keep their vision."""
    layers_saved: float
    """Part of the layers that would read vision and do not, mean over the questions."""
    prefill_saved: float | None
    """Part of the language model's prefill FLOPs, mean; None where they can't be counted."""


@dataclass(frozen=True, slots=True)
class Found:
    """All figures on the held-out questions."""

    gates: list[GateFigures]
    exits: Exits
    """As the policy takes them."""
    earliest_allowed: Exits
    """At the first layer whose label is 1."""
    fixed: dict[str, Exits]
    """Every question at the same layer, by that layer."""


def decisions(gates: Sequence[Any], features: Tensor) -> Tensor:
    """Let gates decide as the policy does, at the features' own precision.

    features: # (n, G, 2 H); returned: # (n, G) bool, True for "exit"
    """
    said = []
    for layer, gate in enumerate(gates):
        hidden, output, bias = (one.to(features) for one in gate)
        both = scores((hidden, output, bias), features[:, layer])  # (n, 2)
        said.append(both[:, 1] > both[:, 0])
    return torch.stack(said, 1)


def evaluate(
    said: Tensor,
    held_out: Dataset,
    labels: Tensor,
    training_labels: Tensor,
    vision_shares: Sequence[float] | None,
    *,
    cross_layers: tuple[int, ...] = (),
) -> Found:
    """Compute the figures.

    Args:
        said: # (n, G) bool, of the held-out questions, as are
        labels: # (n, G) long
        training_labels: # (t, G) long
        vision_shares: of each held-out question's prompt; None where they can't be counted.
    """
    count, gates = labels.shape
    # A last column for the vision that stays: all tokens agree, and it is always allowed.
    agreement = functional.pad(held_out.agreement, (0, 1), value=1.0)
    allowed = functional.pad(labels, (0, 1), value=1).float()
    rows = torch.arange(count)

    def exits(chosen: Tensor) -> Exits:
        """Let each question's vision leave at its first choice: # (n, G) bool."""
        first = functional.pad(chosen.long(), (0, 1), value=1).argmax(1)  # (n,)
        layers = Counter((first + 1).tolist())
        named = {"never" if at > gates else str(at): layers[at] for at in sorted(layers)}
        shares = [withdrawn_share(at, gates + 1, cross_layers) for at in (first + 1).tolist()]
        saved = None
        if vision_shares is not None:
            saved = fmean(one * part for one, part in zip(shares, vision_shares, strict=True))
        return Exits(
            layers=named,
            agreement=float(agreement[rows, first].mean()),
            allowed=float(allowed[rows, first].mean()),
            layers_saved=fmean(shares),
            prefill_saved=saved,
        )

    usual = (training_labels.float().mean(0) > 0.5).long()  # (G,)
    right = (said.long() == labels).sum(0).tolist()
    judged = [
        GateFigures(
            layer=gate + 1,
            may_exit=float(labels[:, gate].float().mean()),
            majority=float((labels[:, gate] == usual[gate]).float().mean()),
            accuracy=right[gate] / count,
            accuracy_interval_95=wilson(right[gate], count),
        )
        for gate in range(gates)
    ]
    always = functional.one_hot(torch.arange(gates))
    fixed = {str(gate + 1): exits(always[gate].expand(count, -1)) for gate in range(gates)}
    return Found(judged, exits(said), exits(labels), fixed)


def verdict(found: Found, questions: int, *, learnable: bool) -> list[str]:
    """Put into sentences what the figures show.

    Args:
        learnable: whether any label, of training or held out, allows an exit.
    """
    better = [one for one in found.gates if one.accuracy_interval_95[0] > one.majority]
    chance = f"by more than chance explains on {questions} held-out questions"
    if better:
        layers = ", ".join(str(one.layer) for one in better)
        learnt = (
            f"Before layer {layers} the gates are right more often than the label that is most "
            f"frequent, {chance}."
        )
    elif not learnable:
        learnt = (
            "On no question do the labels allow an exit: within these bounds this model needs its "
            "vision in every layer, and there is nothing for gates to learn."
        )
    else:
        learnt = (
            f"No gate is right more often than the label that is most frequent, {chance}: they do "
            "not tell one question from another better than a fixed layer would, as vtw has it."
        )
    exits = found.exits
    leaving = questions - exits.layers.get("never", 0)
    if not leaving:
        return [learnt, "On no held-out question does the vision leave."]
    saved = ""
    if exits.prefill_saved is not None:
        saved = f" and saves {percent(exits.prefill_saved)} of the language model's prefill FLOPs"
    return [
        learnt,
        f"The vision leaves on {leaving} of {questions} held-out questions{saved}; "
        f"{percent(exits.agreement)} of the answers' next tokens stay the likeliest, and on "
        f"{percent(exits.allowed)} of the questions it stays or leaves within the bounds.",
    ]


def tables(outcome: Outcome) -> list[Section]:
    """Put the gates' exits beside fixed layers; every one is in the report."""
    figures, data = outcome.figures, outcome.figures["data"]
    ways = {"the gates": figures["exits"], "earliest allowed": figures["earliest_allowed"]}
    fixed = [(f"layer {layer}", exits) for layer, exits in figures["fixed"].items()]
    ways |= dict(fixed[:: -(-len(fixed) // _SHOWN)])
    shares = ("agreement", "allowed", "layers_saved", "prefill_saved")
    rows = [
        [name, *(MISSING if exits[one] is None else percent(exits[one]) for one in shares)]
        for name, exits in ways.items()
    ]
    table = Table(["exit", *(one.replace("_", " ") for one in shares)], rows)
    held = Sentence(
        f"{data['held_out_questions']} questions on {data['held_out_images']} images held out; "
        f"trained on {data['training_questions']} on {data['training_images']}. Agreement: next "
        "tokens along the answers that stay the likeliest. Saved: of the layers that read vision, "
        "and of the language model's prefill FLOPs."
    )
    return [Section("exits", "Exits", [table, held])]


def charts(outcome: Outcome) -> list[Chart]:
    """Draw the gates' accuracy against the layer."""
    xs = [float(one["layer"]) for one in outcome.curve]

    def line(name: str, colour: int, of: str) -> Line:
        return Line(name, colour, xs, [100 * one[of] for one in outcome.curve])

    return [
        Chart(
            "accuracy",
            "Accuracy of the gates on held-out images",
            "first layer without vision",
            "share of the questions",
            "%",
            "Where the gates lie on the majority, they have learnt no more than what is most "
            "frequent.",
            [
                line("the label most frequent in training", 0, "majority"),
                line("the gates", 1, "accuracy"),
                line("label 1: the vision may go", 3, "may_exit"),
            ],
        )
    ]
