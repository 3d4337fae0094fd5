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
    largest = max((step.mass or 0.0 for step in record.steps), default=0.0)
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
        record=record,
        patches=run.patches,
        shown_layers=shown_layers(record),
        over_layers=_over_layers(record),
        largest=largest,
        percent=percent,
        heat=_placed_weights(run, chosen),
        tokens=list(_tokens(run, largest)),
        marks=run.marks,
        settings=_settings(run),
    )


def _tokens(run: Explained, largest: float) -> Iterator[dict[str, Any]]:
    """Gather what the page shows of each token: its text, its colour, its shares by layer."""
    record = run.record
    for number, (_, text) in enumerate(run.tokens):
        step = record.steps[number]
        shares = [step.mass, *(step.at(layer) for layer in record.layers)]
        yield {
            "text": text,
            "lines": text.split("\n"),
            "mass": step.mass,
            "strength": f"{(step.mass or 0.0) / (largest or 1.0):.3f}",
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


def percent(part: float) -> str:
    """Write a part of 1 with about three digits; `script.js` does the same."""
    value = 100 * part
    return f"{value:.{1 if value >= 10 else 2 if value >= 0.1 else 4}f} %"


def _over_layers(record: Record) -> str:
    count = len(record.layers)
    return f"mean of {count} layers" if count != 1 else f"layer {record.layers[0]} alone"


def _placed_weights(run: Explained, token: int) -> dict[str, Any]:
    """Return how strong the heat map of a token is, and what lies on vision tokens of no place."""
    if run.patches is None or not run.record.steps:
        return {"strongest": None, "elsewhere": None}
    weights = mean_weights(run.record, token).tolist()
    placed = [w for w, one in zip(weights, run.patches, strict=True) if one is not None]
    elsewhere = sum(weights) - sum(placed) if len(placed) < len(weights) else None
    return {"strongest": max(placed, default=0.0), "elsewhere": elsewhere}


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
