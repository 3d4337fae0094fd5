"""A report of DyVTE's gates as tables, sentences and pictures. It adds no figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mvw_cli.render.chart import Chart, Line
from mvw_cli.render.sections import Section, Sentence, Table
from mvw_cli.text import number, percent

if TYPE_CHECKING:
    from mvw_cli.calibrate.dyvte.report import Exits, Report

_MISSING = "—"


def sections(report: Report) -> list[Section]:
    """Put a report into words."""
    gates = Table(
        ["exit before layer", "label 1", "majority", "accuracy", "95 %", "exits", "wrong exits"],
        [
            [
                str(one.layer),
                percent(one.may_exit),
                percent(one.majority),
                percent(one.accuracy),
                " to ".join(percent(end) for end in one.accuracy_interval_95),
                percent(one.exits),
                percent(one.wrong_exits),
            ]
            for one in report.found.gates
        ],
        "Majority: what the label that is most frequent in training gets right.",
    )
    ways = [
        ("the gates", report.found.exits),
        ("earliest allowed", report.found.earliest_allowed),
        *((f"layer {layer}", exits) for layer, exits in report.found.fixed.items()),
    ]
    columns = [
        "exit",
        "agreement",
        "allowed",
        "loss, nats",
        "layers saved",
        "prefill saved",
        "with encoder",
    ]
    exits = Table(
        columns,
        [[name, *_figures(one)] for name, one in ways],
        "Agreement: next tokens along the answers that stay the likeliest. Loss: along the "
        f"answers; {number(report.found.full_loss_nats)} with the vision. Saved: of the layers "
        "that read vision; of the language model's prefill FLOPs; of those with the vision "
        "encoder's.",
    )
    chosen = Table(
        ["first layer without vision", "questions"],
        [[layer, str(count)] for layer, count in report.found.exits.layers.items()],
    )
    data = report.data
    held = (
        f"{data['held_out_questions']} questions on {data['held_out_images']} images held out; "
        f"trained on {data['training_questions']} on {data['training_images']}."
    )
    said = [Sentence(one, "verdict") for one in report.verdict]
    return [
        Section("gates", "Gates", [Sentence(held), gates]),
        Section("exits", "Exits", [chosen, exits, *said]),
    ]


def pictures(report: Report) -> list[Chart]:
    """Draw the gates' accuracy, and where vision leaves, against the layer."""
    gates = report.found.gates
    xs = [float(one.layer) for one in gates]
    accuracy = Chart(
        "accuracy",
        "Accuracy of the gates on held-out images",
        "first layer without vision",
        "share of the questions",
        "%",
        "Where the gates lie on the majority, they have learnt no more than what is most frequent.",
        [
            Line("the label most frequent in training", 0, xs, [100 * g.majority for g in gates]),
            Line("the gates", 1, xs, [100 * g.accuracy for g in gates]),
            Line("label 1: the vision may go", 3, xs, [100 * g.may_exit for g in gates]),
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
            Line("next tokens that stay", 0, xs, [100 * one.agreement for one in gates]),
            Line("gone, by the gates", 1, xs, _gone(report.found.exits, xs)),
            Line("gone, at the earliest allowed", 3, xs, _gone(report.found.earliest_allowed, xs)),
        ],
    )
    return [accuracy, chosen]


def _gone(exits: Exits, layers: list[float]) -> list[float]:
    """Say for each layer at how many questions in a hundred it reads no vision."""
    total = sum(exits.layers.values())
    leaving = {float(at): count for at, count in exits.layers.items() if at != "never"}
    return [
        100 * sum(count for at, count in leaving.items() if at <= layer) / total for layer in layers
    ]


def _figures(exits: Exits) -> list[str]:
    return [
        percent(exits.agreement),
        percent(exits.allowed),
        number(exits.loss_nats),
        percent(exits.layers_saved),
        _MISSING if exits.prefill_saved is None else percent(exits.prefill_saved),
        _MISSING
        if exits.prefill_saved_with_encoder is None
        else percent(exits.prefill_saved_with_encoder),
    ]
