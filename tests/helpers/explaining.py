"""Watched runs on tiny models, and the figures of a page as a reader would take them out."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image

from mvw_cli.adapter import Patch
from mvw_cli.engine.types import Event, Request, Token
from mvw_cli.explain.document import Explained, Mark
from mvw_cli.explain.record import Record, recorded
from mvw_cli.images.reading import ImageFile
from mvw_cli.policy import WithdrawalPolicy
from mvw_cli.session import Session


def run_recorded(
    session: Session, request: Request, policy: WithdrawalPolicy | None = None
) -> tuple[Record, list[Event], tuple[int, ...]]:
    """Serve a request as `mvw infer --explain` does."""
    asked = request if policy is None else replace(request, policy=policy)
    asked, record = recorded(asked)
    events = list(session.run([asked]))
    return record, events, events[-1].token_ids  # type: ignore[union-attr]


def explained(
    record: Record,
    events: Sequence[Event],
    *,
    pictures: Sequence[Image] = (),
    patches: Sequence[Patch | None] | None = None,
    marks: Sequence[Mark] = (),
    **given: Any,
) -> Explained:
    tokens = [(event.id, event.text) for event in events if isinstance(event, Token)]
    whole = Explained(
        question="How many?",
        answer="3",
        pictures=[
            ImageFile(image, f"{n}.png", "0" * 64, image.size, image.size)
            for n, image in enumerate(pictures)
        ],
        tokens=tokens,
        marks=marks,
        patches=patches,
        record=record,
        policy="m=4",
        settings={"generation.seed": 7},
        model={"name": "tiny", "adapter": "hf"},
        environment={"mvw": "0"},
    )
    return replace(whole, **given)


def data_of(page: str) -> dict[str, Any]:
    """Read the document that a page holds."""
    [found] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    document = json.loads(found)
    assert isinstance(document, dict)
    return document


def weights_of(data: dict[str, Any], token: int, layer: int | None = None) -> torch.Tensor | None:
    """Unpack the weights of a token, mean or of a layer, as docs/explain.md says: # (N,)."""
    first = data["tokens"][token]["row"]
    if first is None:
        return None
    row = first + (0 if layer is None else 1 + data["layers_in_page"].index(layer))
    packed, count = data["weights"], data["weights"]["columns"]
    levels = struct.unpack_from(f"<{count}H", base64.b64decode(packed["data"]), 2 * row * count)
    return torch.tensor(levels) / packed["full_scale"] * packed["scales"][row]
