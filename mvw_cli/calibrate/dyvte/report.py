"""What trained gates are worth on images they have not seen: the report, and its figures.

A gate that is no better than always saying what is most often right has learnt nothing; so that
share stands beside every accuracy. Beside the gates' exits stand two others: the first layer at
which the label allows it, which no gate can know, and each fixed layer. It does not know how gates
are trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mvw_cli.bench.quality.proportions import wilson
from mvw_cli.calibrate.dyvte.cost import Prefill, withdrawn_share

if TYPE_CHECKING:
    from torch import Tensor

    from mvw_cli.calibrate.dyvte.store import Table
    from mvw_cli.environment import Environment

SCHEMA_VERSION = 1


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


@dataclass(frozen=True, slots=True)
class Report:
    """One calibration."""

    environment: Environment
    model: dict[str, Any]
    profile: dict[str, Any]
    """As `Resolved.to_dict` returns it."""
    settings: dict[str, Any]
    """Of labels and training."""
    data: dict[str, Any]
    found: Found
    verdict: list[str]
    command: list[str]
    started: str
    labelling_s: float
    training_s: float
    """Of this run; less than the whole where another has gone before."""
    remarks: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION
    kind: str = "calibrate dyvte"


def decisions(gates: Sequence[Any], features: Tensor) -> Tensor:
    """Let gates decide as the policy does, at the features' own precision.

    features: # (n, G, 2 H); returned: # (n, G) bool, True for "exit"
    """
    import torch

    from mvw_cli.calibrate.dyvte.gates import scores

    said = []
    for layer, gate in enumerate(gates):
        placed = tuple(one.to(features) for one in gate)
        both = scores((placed[0], placed[1], placed[2]), features[:, layer])  # (n, 2)
        said.append(both[:, 1] > both[:, 0])
    return torch.stack(said, 1)


def evaluate(
    said: Tensor,
    held_out: Table,
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
    layers = gates + 1

    def exits(chosen: Tensor) -> Exits:
        return _exits(chosen, held_out, labels, costs, layers, cross_layers)

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
    fixed = {}
    for gate in range(gates):
        here = said.new_zeros(said.shape)
        here[:, gate] = True
        fixed[str(gate + 1)] = exits(here)
    full = float(held_out.full_loss.mean())
    return Found(found, exits(said), exits(labels.bool()), fixed, full)


def _exits(
    chosen: Tensor,
    table: Table,
    labels: Tensor,
    costs: Sequence[Prefill] | None,
    layers: int,
    cross_layers: tuple[int, ...],
) -> Exits:
    """Follow each question to its first exit."""
    histogram: dict[str, int] = {}
    agreement, loss, allowed, blind = [], [], [], []
    for row, gates in enumerate(chosen.tolist()):
        gate = next((number for number, leaves in enumerate(gates) if leaves), None)
        name = "never" if gate is None else str(gate + 1)
        histogram[name] = histogram.get(name, 0) + 1
        agreement.append(1.0 if gate is None else float(table.agreement[row, gate]))
        loss.append(float(table.full_loss[row] if gate is None else table.loss[row, gate]))
        allowed.append(gate is None or bool(labels[row, gate]))
        blind.append(withdrawn_share(None if gate is None else gate + 1, layers, cross_layers))
    pairs = None if costs is None else list(zip(costs, blind, strict=True))
    return Exits(
        layers=dict(sorted(histogram.items(), key=_by_layer)),
        agreement=fmean(agreement),
        allowed=fmean(allowed),
        loss_nats=fmean(loss),
        layers_saved=fmean(blind),
        prefill_saved=None if pairs is None else fmean(c.saved(b) for c, b in pairs),
        prefill_saved_with_encoder=(
            None if pairs is None else fmean(c.saved_of_all(b) for c, b in pairs)
        ),
    )


def _by_layer(item: tuple[str, int]) -> float:
    return float("inf") if item[0] == "never" else float(item[0])


def verdict(found: Found, questions: int) -> list[str]:
    """Say in sentences what the figures show."""
    said = [_learnt(found.gates, questions)]
    exits = found.exits
    stayed = exits.layers.get("never", 0)
    if stayed == questions:
        return [*said, "On no held-out question does the vision leave."]
    saved = ""
    if exits.prefill_saved is not None:
        saved = (
            f" and saves {100 * exits.prefill_saved:.1f} % of the language model's prefill FLOPs"
        )
    said.append(
        f"The vision leaves on {questions - stayed} of {questions} held-out questions{saved}; "
        f"{100 * exits.agreement:.1f} % of the answers' next tokens stay the likeliest, and on "
        f"{100 * exits.allowed:.1f} % of the questions it stays or leaves within the bounds."
    )
    return said


def _learnt(gates: Sequence[GateFigures], questions: int) -> str:
    """Say whether the gates are worth more than one fixed answer."""
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
