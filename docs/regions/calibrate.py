"""What `mvw calibrate` has found on the embedded model, from the reports that it has written."""

from __future__ import annotations

import re
import shlex
from typing import Any

from regions.figures import missing, result
from regions.reference import table


def vtw() -> str:
    """Quote what the published search finds, and what a longer look does."""
    return _quoted(
        ("calibrate_vtw", "The published search, on {} scenes"),
        ("calibrate_vtw_64", "Along 64 tokens, on the same {}"),
    )


def answers() -> str:
    """Quote what the searches for `mass` and `mvw` find on the same scenes."""
    return _quoted(
        ("calibrate_mass", "`mvw calibrate mass` on {} scenes of the embedded model"),
        ("calibrate_mvw", "`mvw calibrate mvw` on the same {}"),
    )


def dyvte() -> str:
    """Tell what the gates learn within the published bounds, and within looser ones."""
    strict, loose = result("calibrate_dyvte"), result("calibrate_dyvte_looser")
    if strict is None or loose is None:
        return missing("calibrate")
    figures = loose["outcome"]["figures"]
    data = figures["data"]
    gates = table(
        ("Exit before layer", "Label 1", "Majority is right", "Gate is right, 95 % interval"),
        [_gate(one) for one in loose["outcome"]["curve"]],
    )
    fixed = {
        f"always before layer {layer}": exits for layer, exits in sorted(figures["fixed"].items())
    }
    ways = {"by the gates": figures["exits"], "earliest allowed": figures["earliest_allowed"]}
    exits = table(
        (
            "Exit",
            "Questions by first layer without vision",
            "Next tokens that stay",
            "Prefill saved",
        ),
        [_exits(name, one) for name, one in {**ways, **fixed}.items()],
    )
    commands = "\n".join(_command(one) for one in (strict, loose))
    questions = strict["outcome"]["figures"]["data"]["questions"]
    return (
        f"The embedded model, on {questions} questions, within the paper's bounds "
        f"(`benchmarks/results/calibrate_dyvte.json`):\n\n{_quote(strict)}\n\n"
        "It reads its image in its last layer, too, and `dyvte` saves nothing there. That the "
        "gates learn what there is to learn shows with looser bounds, where over "
        f"{100 * loose['settings']['agreement']:.0f} % of the tokens must stay and the loss does "
        f"not count (`calibrate_dyvte_looser.json`; {data['training_questions']} scenes trained "
        f"on, {data['held_out_questions']} held out):\n\n{_quote(loose)}\n\n{gates}\n\n{exits}\n\n"
        "These gates are in `benchmarks/gates/dyvte.safetensors`. They were made with:\n\n"
        f"```sh\n{commands}\n```"
    )


def _quoted(*parts: tuple[str, str]) -> str:
    """Quote reports, each with its introduction."""
    written = []
    for name, introduction in parts:
        document = result(name)
        if document is None:
            return missing("calibrate")
        told = introduction.format(len(document["samples"]))
        written.append(f"{told} (`benchmarks/results/{name}.json`):\n\n{_quote(document)}")
    return "\n\n".join(written)


def _quote(document: dict[str, Any]) -> str:
    """Quote a report's reason and remarks; tags are no HTML."""
    outcome = document["outcome"]
    said = " ".join([outcome["reason"], *outcome["remarks"]])
    return "> " + re.sub(r"</?\w+>", lambda tag: f"`{tag[0]}`", said)


def _gate(one: dict[str, Any]) -> tuple[str, ...]:
    low, high = one["accuracy_interval_95"]
    return (
        str(one["layer"]),
        _percent(one["may_exit"]),
        _percent(one["majority"]),
        f"{_percent(one['accuracy'])}, {100 * low:.1f} to {_percent(high)}",
    )


def _exits(name: str, one: dict[str, Any]) -> tuple[str, ...]:
    layers = ", ".join(f"{layer}: {count}" for layer, count in one["layers"].items())
    return name, layers, _percent(one["agreement"]), _percent(one["prefill_saved"])


def _command(report: dict[str, Any]) -> str:
    """Write a command without the name of its output."""
    words = list(report["command"])
    if "-o" in words:
        del words[words.index("-o") : words.index("-o") + 2]
    return shlex.join(words)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
