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
from typing import Any

from markupsafe import Markup
from PIL.Image import Image

from mvw_cli.explain.document import Explained, document, mean_weights
from mvw_cli.render.html import POLICY
from mvw_cli.render.jinja import rendered, resource

_LONGEST = 1600
"""Pixels a side; a larger picture is scaled down for the page."""
_LOSSLESS = 512 * 512
"""Pixels up to which a picture is kept without loss."""


def page(run: Explained) -> str:
    """Write a recorded run as one HTML page."""
    data = document(run)
    # At first: the first token that saw the picture.
    chosen = next((i for i, token in enumerate(data["tokens"]) if token["row"] is not None), 0)
    weights = mean_weights(run.record, chosen).tolist() if data["tokens"] else []
    placed = [weight for weight, one in zip(weights, run.patches or [], strict=False) if one]
    script = resource("mvw_cli.explain", "script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return rendered(
        "mvw_cli.explain",
        "page.html.j2",
        policy=f"{POLICY}; script-src 'sha256-{digest}'",
        title=f"{run.question} · mvw infer --explain",
        style=resource("mvw_cli.explain", "style.css"),
        script=script,
        data=data,
        json=Markup(_json(data)),
        mass_layers=run.record.mass_layers,
        chosen=chosen,
        addresses=[_address(one.image) for one in run.pictures],
        patches=run.patches or [],
        weights=weights,
        largest=max((token["mass"] or 0.0 for token in data["tokens"]), default=0.0),
        strongest=max(placed, default=0.0),
        elsewhere=sum(weights) - sum(placed) if len(placed) < len(weights) else None,
        percent=percent,
    )


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


def _json(data: dict[str, Any]) -> str:
    """Write the document so that nothing in it can end the element that holds it."""
    written = json.dumps(data, ensure_ascii=True, allow_nan=False, default=str)
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
