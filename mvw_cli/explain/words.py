"""The sentences of the page. `script.js` writes those on a chosen token in the same words."""

from __future__ import annotations

from dataclasses import dataclass

from mvw_cli.explain.data import Explained, mean_weights, shown_layers
from mvw_cli.explain.record import Record
from mvw_cli.render.svg import safe

HONEST = (
    "Attention is not an explanation of the answer. It says which keys a query weighed, before "
    "their values were mixed and passed through the layers above; vision that was read early can "
    "lie in the text's own keys and values. To see what an answer owes to the picture, take the "
    "picture away: compare with --m or with another image."
)


@dataclass(frozen=True, slots=True)
class Legend:
    """What the colours stand for."""

    colour: str
    layers: str


def legend(record: Record) -> Legend:
    count = len(record.layers)
    layers = f"mean of {count} layers" if count != 1 else f"layer {record.layers[0]} alone"
    largest = top_mass(record)
    if record.measure == "cross-attention":
        what = "part of the stream that the cross-attention layers added"
    else:
        what = "share of the attention that went to vision tokens"
    return Legend(
        f"Colour: {what}, from 0 % to {percent(largest)}, the largest here. "
        "Hatched: no vision left to look at.",
        layers,
    )


def top_mass(record: Record) -> float:
    """The largest mass of the run: full colour."""
    return max((step.mass or 0.0 for step in record.steps), default=0.0)


def says(run: Explained, token: int) -> str:
    """Say what a token looked at, as HTML: mean over the layers."""
    record = run.record
    if not record.steps:
        return "No token was generated."
    mass, text = record.steps[token].mass, run.tokens[token][1]
    head = f"<b>Token {token + 1}</b> <q>{safe(text)}</q>: "
    if mass is None:
        return head + "no vision left. It had no access to the picture."
    over = legend(record).layers
    if record.measure == "cross-attention":
        head += f"cross-attention added {percent(mass)} of the stream."
    else:
        head += f"{percent(mass)} of its attention went to vision, {over}."
    if run.patches is None:
        return head
    weights = mean_weights(record, token).tolist()
    placed = [w for w, one in zip(weights, run.patches, strict=True) if one is not None]
    elsewhere = sum(weights) - sum(placed)
    head += f" Full heat: {percent(max(placed, default=0.0))} on one patch."
    if len(placed) < len(weights):
        head += f" On vision tokens of no place: {percent(elsewhere)}."
    return head


def measured(run: Explained) -> list[str]:
    """Say how the figures came about."""
    record = run.record
    numbers = ", ".join(map(str, record.layers)) or "none"
    lines = [
        "For each generated token: the attention of the newest query in the very forward pass that "
        "chose it, which is the query of the token before it; mean over the heads, computed beside "
        "the kernel that served it. The tokens are those of the run without this page.",
        f"Watched layers: {numbers}. Vision tokens: {record.vision_tokens}. A layer that holds no "
        "vision any more counts as 0 in the mean.",
    ]
    if record.measure == "cross-attention":
        lines.append(
            "This model reads vision by cross-attention, where all attention goes to vision: the "
            "colour of a token is ‖added‖ / (‖stream‖ + ‖added‖), what those layers add to its "
            f"hidden state, over layers {', '.join(map(str, record.mass_layers))}. The heat map is "
            "the attention within them."
        )
    if run.marks:
        lines.append(
            "After a complete withdrawal a token has no access to vision at all: that it did not "
            "look is a fact of the policy, and tells nothing about the model."
        )
    if run.patches is not None:
        lines.append(
            "The heat map is scaled to its strongest patch, token by token: compare patches of one "
            "token, not of two. A patch is where a vision token was made from; the vision tower "
            "has mixed all patches by then."
        )
    hidden = len(record.layers) - len(shown_layers(record))
    if hidden:
        lines.append(
            f"The run is long: this page holds the patches of {len(shown_layers(record))} layers "
            f"and of the mean, and leaves out those of {hidden} watched layers."
        )
    return lines


def percent(part: float) -> str:
    """Write a part of 1 with about three digits; `script.js` does the same."""
    value = 100 * part
    return f"{value:.{1 if value >= 10 else 2 if value >= 0.1 else 4}f} %"
