"""The page around a recorded run: one file, nothing fetched, nothing moving without a reason.

What can be seen without JavaScript: everything, with the heat map of the first token that saw the
picture. `script.js` lets other tokens and layers be chosen, and writes the sentence on a chosen
token in the same words. All text is escaped: a model wrote it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

from markupsafe import Markup
from PIL.Image import Image

from mvw_cli.explain.document import Explained, document, mean_weights, shown_layers
from mvw_cli.explain.record import Record
from mvw_cli.render.html import POLICY, rendered, resource

HONEST = (
    "Attention is not an explanation of the answer. It says which keys a query weighed, before "
    "their values were mixed and passed through the layers above; vision that was read early can "
    "lie in the text's own keys and values. To see what an answer owes to the picture, take the "
    "picture away: compare with --m or with another image."
)
_LONGEST = 1600
"""Pixels a side; a larger picture is scaled down for the page."""
_LOSSLESS = 512 * 512
"""Pixels up to which a picture is kept without loss."""


def page(run: Explained) -> str:
    """Write a recorded run as one HTML page."""
    record, model = run.record, run.model
    script = resource("mvw_cli.explain", "script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    seeing = (number for number, step in enumerate(record.steps) if step.by_layer)
    chosen = next(seeing, 0)  # at first: the first token that saw the picture
    return rendered(
        "mvw_cli.explain",
        "page.html.j2",
        policy=f"{POLICY}; script-src 'sha256-{digest}'",
        title=f"{run.question} · mvw infer --explain",
        style=resource("mvw_cli.explain", "style.css"),
        script=script,
        data=Markup(_json(run)),
        question=run.question,
        subtitle=f"{model.get('name')} ({model.get('adapter')}), {run.policy}",
        version=str(run.environment.get("mvw", "")),
        chosen=chosen,
        pictures=list(_pictures(run, chosen)),
        placed=run.patches is not None and any(one is not None for one in run.patches),
        layers=record.layers,
        shown_layers=shown_layers(record),
        over_layers=_over_layers(record),
        sentence=_sentence(run, chosen),
        colour_legend=_colour_legend(record),
        tokens=list(_tokens(run)),
        marks=run.marks,
        notes=[*_how_measured(run), HONEST],
        mass_heading="mean" if record.measure == "attention" else "added",
        settings=_settings(run),
    )


def _tokens(run: Explained) -> Iterator[dict[str, Any]]:
    """Gather what the page shows of each token: its text, its colour, its shares by layer."""
    record = run.record
    largest = _largest_mass(record) or 1.0
    for number, (_, text) in enumerate(run.tokens):
        step = record.steps[number]
        shares = [step.mass, *(step.at(layer) for layer in record.layers)]
        yield {
            "text": text,
            "lines": text.split("\n"),
            "mass": step.mass,
            "strength": f"{(step.mass or 0.0) / largest:.3f}",
            "told": "no vision left" if step.mass is None else percent(step.mass),
            "shares": ["—" if one is None else percent(one) for one in shares],
        }


# The pictures, with one rectangle for each patch: its opacity is the heat.


def _pictures(run: Explained, chosen: int) -> Iterator[dict[str, Any]]:
    patches = run.patches or []
    weights: list[float] = [0.0] * len(patches)
    if patches and run.record.steps:
        weights = mean_weights(run.record, chosen).tolist()
    placed = [w for w, one in zip(weights, patches, strict=True) if one is not None]
    largest = max(placed, default=0.0) or 1.0
    for number, picture in enumerate(run.pictures):
        width, height = picture.image.size
        yield {
            "name": picture.name,
            "width": width,
            "height": height,
            "address": _address(picture.image),
            "patches": [
                {
                    "token": token,
                    "x": f"{patch.left * width:.2f}",
                    "y": f"{patch.top * height:.2f}",
                    "width": f"{(patch.right - patch.left) * width:.2f}",
                    "height": f"{(patch.bottom - patch.top) * height:.2f}",
                    "heat": f"{weights[token] / largest:.3f}",
                }
                for token, patch in enumerate(patches)
                if patch is not None and patch.image == number
            ],
        }


def _address(image: Image) -> str:
    """Write a picture into an address of its own."""
    shown = image
    if max(image.size) > _LONGEST:
        shown = image.copy()
        shown.thumbnail((_LONGEST, _LONGEST))
    file = io.BytesIO()
    lossless = shown.width * shown.height <= _LOSSLESS
    kind, how = ("png", {"optimize": True}) if lossless else ("jpeg", {"quality": 88})
    shown.save(file, kind, **how)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


# Sentences.


def percent(part: float) -> str:
    """Write a part of 1 with about three digits; `script.js` does the same."""
    value = 100 * part
    return f"{value:.{1 if value >= 10 else 2 if value >= 0.1 else 4}f} %"


def _over_layers(record: Record) -> str:
    count = len(record.layers)
    return f"mean of {count} layers" if count != 1 else f"layer {record.layers[0]} alone"


def _largest_mass(record: Record) -> float:
    return max((step.mass or 0.0 for step in record.steps), default=0.0)


def _colour_legend(record: Record) -> str:
    if record.measure == "cross-attention":
        what = "part of the stream that the cross-attention layers added"
    else:
        what = "share of the attention that went to vision tokens"
    return (
        f"Colour: {what}, from 0 % to {percent(_largest_mass(record))}, the largest here. "
        "Hatched: no vision left to look at."
    )


def _sentence(run: Explained, token: int) -> str:
    """Write what a token looked at, mean over the layers."""
    record = run.record
    mass = record.steps[token].mass if record.steps else None
    if mass is None:
        return "no vision left. It had no access to the picture."
    if record.measure == "cross-attention":
        told = f"cross-attention added {percent(mass)} of the stream."
    else:
        told = f"{percent(mass)} of its attention went to vision, {_over_layers(record)}."
    if run.patches is None:
        return told
    weights = mean_weights(record, token).tolist()
    placed = [w for w, one in zip(weights, run.patches, strict=True) if one is not None]
    told += f" Full heat: {percent(max(placed, default=0.0))} on one patch."
    if len(placed) < len(weights):
        told += f" On vision tokens of no place: {percent(sum(weights) - sum(placed))}."
    return told


def _how_measured(run: Explained) -> list[str]:
    """Write how the figures came about."""
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
    shown = len(shown_layers(record))
    if shown < len(record.layers):
        lines.append(
            f"The run is long: this page holds the patches of {shown} layers and of the mean, and "
            f"leaves out those of {len(record.layers) - shown} watched layers."
        )
    return lines


def _settings(run: Explained) -> dict[str, str]:
    rows: dict[str, Any] = {"withdrawal": run.policy}
    rows |= {f"model: {key}": value for key, value in run.model.items()}
    rows |= dict(run.settings)
    rows |= {f"environment: {key}": value for key, value in run.environment.items()}
    for number, one in enumerate(run.pictures, start=1):
        size = f"{one.image.width} x {one.image.height} px"
        rows[f"image {number}"] = f"{one.name}, {size}, sha256 {one.sha256}"
    return {key: "—" if value is None else str(value) for key, value in rows.items()}


def _json(run: Explained) -> str:
    """Write the document so that nothing in it can end the element that holds it."""
    written = json.dumps(document(run), ensure_ascii=True, allow_nan=False, default=str)
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
