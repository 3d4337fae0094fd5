"""What trained gates are worth on images they have not seen: the figures, and how they are shown.

A gate that is no better than always saying what is most often right has learnt nothing; so that
share is told with every accuracy. With the gates' exits come two others: the first layer at which
the label allows it, which no gate can know, and each fixed layer.

What an exit saves is counted in FLOPs of the language model's prefill. A layer's share of what
vision costs is taken to be the same for all layers that read vision, which is true of all but a few
dense first layers of mixtures of experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from mvw_cli.bench.stats import wilson
from mvw_cli.calibrate.dyvte.gates import scores
from mvw_cli.calibrate.dyvte.training import Dataset
from mvw_cli.calibrate.search import Outcome
from mvw_cli.cost.flops import Flops
from mvw_cli.render.chart import Chart, Line
from mvw_cli.render.sections import Section, Sentence, Table
from mvw_cli.text import number, percent

_SHOWN = 8
"""Fixed layers that a table on one screen has."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """FLOPs of reading one prompt in the language model; the vision encoder is apart."""

    full: float
    """Every layer reads the vision."""
    text: float
    """No layer does."""
    encoder: float
    """Vision encoder and projector, which no exit saves."""

    def saved(self, blind: float) -> float:
        """Compute the part of the language model's prefill that is saved, from 0 to 1.

        blind: part of the layers that would read vision and do not.
        """
        return blind * (self.full - self.text) / self.full

    def saved_of_all(self, blind: float) -> float:
        """Compute the same of the prefill with the vision encoder."""
        return self.saved(blind) * self.full / (self.full + self.encoder)


def prefill(flops: Flops, text: int, vision: int, *, keep_mlp: bool = False) -> Prefill:
    """Count a prompt.

    Args:
        text: prompt tokens apart from the vision.
        keep_mlp: whether cross-attention layers without vision keep their gated MLP.
    """
    encoder = 0.0 if flops.tower is None else float(flops.tower.flops(vision))
    blind = flops.prefill(text, 0)
    if keep_mlp and any(layer.cross for layer in flops.shape.layers):
        blind += 2.0 * (flops.cross - flops.cross_attention) * text
    return Prefill(flops.prefill(text, vision) - encoder, blind, encoder)


def withdrawn_share(exit_layer: int | None, layers: int, cross_layers: tuple[int, ...]) -> float:
    """Compute the part of the layers that read vision and are past the exit.

    Args:
        exit_layer: the first layer without vision; None where it stays.
        cross_layers: cross-attention layers, which alone read the vision.
    """
    if exit_layer is None:
        return 0.0
    reading = cross_layers or tuple(range(layers))
    return sum(layer >= exit_layer for layer in reading) / len(reading)


@dataclass(frozen=True, slots=True)
class GateFigures:
    """One gate on the held-out questions."""

    layer: int
    """The vision would leave before this layer; the gate reads the one before."""
    may_exit_training: float
    """Share of the questions whose label is 1."""
    may_exit: float
    majority: float
    """Share of the label that is most frequent in training: what a constant answer gets right."""
    accuracy: float
    accuracy_interval_95: tuple[float, float]
    exits: float
    """Share of the questions at which the gate says "exit"."""
    wrong_exits: float
    """Share of the questions at which it says so and the label is 0."""
    agreement: float
    """Share of next tokens that stay the likeliest when the vision of every question leaves here,
    mean over the questions."""


@dataclass(frozen=True, slots=True)
class Exits:
    """What one way to choose exits gives on the held-out questions."""

    layers: dict[str, int]
    """Questions by the first layer without vision; `never` where the vision stays."""
    agreement: float
    """Share of next tokens that stay the likeliest, mean over the questions."""
    allowed: float
    """Share of the questions whose exit has the label 1, or that keep their vision."""
    loss_nats: float
    """Mean loss along the answers."""
    layers_saved: float
    """Part of the layers that would read vision and do not, mean over the questions."""
    prefill_saved: float | None
    """Part of the language model's prefill FLOPs, mean; None where they can't be counted."""
    prefill_saved_with_encoder: float | None


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
    full_loss_nats: float
    """Mean loss along the answers with the vision."""


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
    costs: Sequence[Prefill] | None,
    *,
    cross_layers: tuple[int, ...] = (),
) -> Found:
    """Compute the figures.

    Args:
        said: # (n, G) bool, of the held-out questions, as are
        labels: # (n, G) long
        training_labels: # (t, G) long
        costs: of each held-out question's prompt; None where they can't be counted.
    """
    count, gates = labels.shape
    full = held_out.full_loss.tolist()

    def exits(places: Sequence[int | None]) -> Exits:
        """Let each question's vision leave before a layer, or stay."""
        counted = Counter(places)
        layers = {str(at): counted[at] for at in sorted(at for at in counted if at is not None)}
        if None in counted:
            layers["never"] = counted[None]
        gone = [(row, at - 1) for row, at in enumerate(places) if at is not None]
        stay = count - len(gone)
        losses = [float(held_out.loss[one]) for one in gone]
        losses += [full[row] for row, at in enumerate(places) if at is None]
        shares = [withdrawn_share(at, gates + 1, cross_layers) for at in places]
        pairs = None if costs is None else list(zip(costs, shares, strict=True))
        return Exits(
            layers=layers,
            agreement=(sum(float(held_out.agreement[one]) for one in gone) + stay) / count,
            allowed=(sum(int(labels[one]) for one in gone) + stay) / count,
            loss_nats=fmean(losses),
            layers_saved=fmean(shares),
            prefill_saved=None if pairs is None else fmean(c.saved(part) for c, part in pairs),
            prefill_saved_with_encoder=(
                None if pairs is None else fmean(c.saved_of_all(part) for c, part in pairs)
            ),
        )

    found = []
    for gate in range(gates):
        right = int((said[:, gate] == labels[:, gate].bool()).sum())
        usual = int(training_labels[:, gate].float().mean() > 0.5)
        found.append(
            GateFigures(
                layer=gate + 1,
                may_exit_training=float(training_labels[:, gate].float().mean()),
                may_exit=float(labels[:, gate].float().mean()),
                majority=float((labels[:, gate] == usual).float().mean()),
                accuracy=right / count,
                accuracy_interval_95=wilson(right, count),
                exits=float(said[:, gate].float().mean()),
                wrong_exits=float((said[:, gate] & (labels[:, gate] == 0)).float().mean()),
                agreement=float(held_out.agreement[:, gate].mean()),
            )
        )
    fixed = {str(layer): exits([layer] * count) for layer in range(1, gates + 1)}
    return Found(found, exits(_first(said)), exits(_first(labels.bool())), fixed, fmean(full))


def _first(chosen: Tensor) -> list[int | None]:
    """Return the layer before which each question's vision leaves; None where it stays."""
    return [row.index(True) + 1 if any(row) else None for row in chosen.tolist()]


def verdict(found: Found, questions: int) -> list[str]:
    """Put into sentences what the figures show."""
    said = [_learnt(found.gates, questions)]
    exits = found.exits
    stayed = exits.layers.get("never", 0)
    if stayed == questions:
        return [*said, "On no held-out question does the vision leave."]
    saved = ""
    if exits.prefill_saved is not None:
        saved = f" and saves {percent(exits.prefill_saved)} of the language model's prefill FLOPs"
    said.append(
        f"The vision leaves on {questions - stayed} of {questions} held-out questions{saved}; "
        f"{percent(exits.agreement)} of the answers' next tokens stay the likeliest, and on "
        f"{percent(exits.allowed)} of the questions it stays or leaves within the bounds."
    )
    return said


def _learnt(gates: Sequence[GateFigures], questions: int) -> str:
    """Put into a sentence whether the gates are worth more than one fixed answer."""
    better = [one for one in gates if one.accuracy_interval_95[0] > one.majority]
    if better:
        layers = ", ".join(str(one.layer) for one in better)
        return (
            f"Before layer {layers} the gates are right more often than the label that is most "
            f"frequent, by more than chance explains on {questions} held-out questions."
        )
    if not any(one.may_exit or one.may_exit_training for one in gates):
        return (
            "On no question do the labels allow an exit: within these bounds this model needs its "
            "vision in every layer, and there is nothing for gates to learn."
        )
    return (
        "No gate is right more often than the label that is most frequent, by more than chance "
        f"explains on {questions} held-out questions: they do not tell one question from another "
        "better than a fixed layer would, as vtw has it."
    )


# -- how they are shown -------------------------------------------------------------------------


def tables(outcome: Outcome, *, whole: bool) -> list[Section]:
    """Put the figures into words: the exits, and with `whole` every gate and every fixed layer."""
    figures, data = outcome.figures, outcome.figures["data"]
    fixed = [(f"layer {layer}", exits) for layer, exits in figures["fixed"].items()]
    step = 1 if whole else -(-len(fixed) // _SHOWN)
    ways = [("the gates", figures["exits"]), ("earliest allowed", figures["earliest_allowed"])]
    exits = Table(
        [
            *("exit", "agreement", "allowed", "loss, nats"),
            *("layers saved", "prefill saved", "with encoder"),
        ],
        [[name, *_figures(one)] for name, one in [*ways, *fixed[::step]]],
    )
    held = Sentence(
        f"{data['held_out_questions']} questions on {data['held_out_images']} images held out; "
        f"trained on {data['training_questions']} on {data['training_images']}. Agreement: next "
        "tokens along the answers that stay the likeliest. Loss: along the answers; "
        f"{number(figures['full_loss_nats'])} with the vision. Saved: of the layers that read "
        "vision; of the language model's prefill FLOPs; of those with the vision encoder's."
    )
    shown = [Section("exits", "Exits", [exits, held])]
    if not whole:
        return shown
    chosen = Table(
        ["first layer without vision", "questions"],
        [[layer, str(count)] for layer, count in figures["exits"]["layers"].items()],
    )
    gates = Table(
        ["exit before layer", "label 1", "majority", "accuracy", "95 %", "exits", "wrong exits"],
        [
            [
                str(one["layer"]),
                percent(one["may_exit"]),
                percent(one["majority"]),
                percent(one["accuracy"]),
                " to ".join(percent(end) for end in one["accuracy_interval_95"]),
                percent(one["exits"]),
                percent(one["wrong_exits"]),
            ]
            for one in outcome.curve
        ],
        "Majority: what the label that is most frequent in training gets right.",
    )
    return [*shown, Section("gates", "Gates", [chosen, gates])]


def charts(outcome: Outcome) -> list[Chart]:
    """Draw the gates' accuracy, and where vision leaves, against the layer."""
    gates = outcome.curve
    xs = [float(one["layer"]) for one in gates]

    def line(name: str, colour: int, of: str) -> Line:
        return Line(name, colour, xs, [100 * one[of] for one in gates])

    def gone(name: str, colour: int, exits: Mapping[str, Any]) -> Line:
        return Line(name, colour, xs, _gone(exits, xs))

    accuracy = Chart(
        "accuracy",
        "Accuracy of the gates on held-out images",
        "first layer without vision",
        "share of the questions",
        "%",
        "Where the gates lie on the majority, they have learnt no more than what is most frequent.",
        [
            line("the label most frequent in training", 0, "majority"),
            line("the gates", 1, "accuracy"),
            line("label 1: the vision may go", 3, "may_exit"),
        ],
    )
    chosen = Chart(
        "exits",
        "Vision gone, by layer, and what it changes",
        "layer",
        "share",
        "%",
        "Questions whose vision is gone at a layer, as the gates say and as the labels would have "
        "allowed; and the next tokens that stay the likeliest when it always leaves there.",
        [
            line("next tokens that stay", 0, "agreement"),
            gone("gone, by the gates", 1, outcome.figures["exits"]),
            gone("gone, at the earliest allowed", 3, outcome.figures["earliest_allowed"]),
        ],
    )
    return [accuracy, chosen]


def _gone(exits: Mapping[str, Any], layers: list[float]) -> list[float]:
    """Compute for each layer at how many questions in a hundred it reads no vision."""
    total = sum(exits["layers"].values())
    leaving = {float(at): count for at, count in exits["layers"].items() if at != "never"}
    return [
        100 * sum(count for at, count in leaving.items() if at <= layer) / total for layer in layers
    ]


def _figures(exits: Mapping[str, Any]) -> list[str]:
    saved = (exits["prefill_saved"], exits["prefill_saved_with_encoder"])
    return [
        percent(exits["agreement"]),
        percent(exits["allowed"]),
        number(exits["loss_nats"]),
        percent(exits["layers_saved"]),
        *("-" if share is None else percent(share) for share in saved),
    ]
