"""A recorded run as one document: what the page shows, in a form that others can read.

`docs/explain.md` says what is in it. The weights are put into 16 bits; nothing else is rounded.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mvw_cli.adapter import Patch
from mvw_cli.bench.quality.attention import spread
from mvw_cli.explain.record import Record
from mvw_cli.images.reading import ImageFile
from mvw_cli.text import as_unicode

SCHEMA_VERSION = 1
MOST_BYTES = 24 * 2**20
"""Of weights in a page, before base64. With more, fewer layers can be chosen there."""
_FULL = 65535


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened to the vision tokens."""

    step: int
    """Number of tokens that were generated before."""
    kind: Literal["withdrawn", "restored"]
    text: str


@dataclass(frozen=True, slots=True)
class Explained:
    """All that the page shows."""

    question: str
    answer: str
    pictures: Sequence[ImageFile]
    """As the model's processor got them."""
    tokens: Sequence[tuple[int, str]]
    """Id and text of each generated token; the text is empty while a character is incomplete."""
    marks: Sequence[Mark]
    patches: Sequence[Patch | None] | None
    """Where each vision token lies; None where the adapter does not tell."""
    record: Record
    policy: str
    settings: Mapping[str, Any]
    """By dotted key of the profile."""
    model: Mapping[str, Any]
    environment: Mapping[str, Any]


def document(run: Explained) -> dict[str, Any]:
    """Make the document."""
    record = run.record
    layers = shown_layers(record)
    rows, places = _rows(record, layers)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "explain",
        "question": run.question,
        "answer": run.answer,
        "images": [
            {
                # A file name that is not UTF-8 must not make the page invalid.
                "name": as_unicode(os.path.basename(one.path)),
                "sha256": one.sha256,
                "width_px": one.image.width,
                "height_px": one.image.height,
            }
            for one in run.pictures
        ],
        "measure": record.measure,
        "vision_tokens": record.vision_tokens,
        "layers": list(record.layers),
        "layers_in_page": layers,
        "tokens": [
            {
                "step": number + 1,
                "id": token,
                "text": text,
                "mass": step.mass,
                "mass_by_layer": [
                    step.by_layer[layer].mass if layer in step.by_layer else None
                    for layer in record.layers
                ],
                "row": places[number],
            }
            for number, ((token, text), step) in enumerate(
                zip(run.tokens, record.steps, strict=True)
            )
        ],
        "marks": [asdict(mark) for mark in run.marks],
        "patches": None if run.patches is None else [*map(_place, run.patches)],
        "weights": rows,
        "policy": run.policy,
        "settings": dict(run.settings),
        "model": dict(run.model),
        "environment": dict(run.environment),
    }


def shown_layers(record: Record) -> list[int]:
    """Choose the layers whose weights the page holds: all watched ones, where they fit."""
    seeing = sum(bool(step.by_layer) for step in record.steps)
    fit = MOST_BYTES // max(1, 2 * seeing * record.vision_tokens) - 1
    return spread(record.layers, fit) if fit > 1 else []


def mean_weights(record: Record, token: int) -> Tensor:
    """Mean over the watched layers; one without vision counts as 0.  # (N,) float32"""
    total = torch.zeros(record.vision_tokens)
    for look in record.steps[token].by_layer.values():
        total += look.weights()
    return total / max(1, len(record.layers))


def _rows(record: Record, layers: Sequence[int]) -> tuple[dict[str, Any], list[int | None]]:
    """Pack the weights: for each token with vision one row of the mean, then one of each layer."""
    rows: list[Tensor] = []
    places: list[int | None] = []
    nothing = torch.zeros(record.vision_tokens)
    for token, step in enumerate(record.steps):
        if not step.by_layer:
            places.append(None)
            continue
        places.append(len(rows))
        rows.append(mean_weights(record, token))
        rows += [
            step.by_layer[layer].weights() if layer in step.by_layer else nothing
            for layer in layers
        ]
    scales = [float(row.max()) for row in rows]
    packed = b"".join(
        (row / (scale or 1) * _FULL).round().to(torch.int32).numpy().astype("<u2").tobytes()
        for row, scale in zip(rows, scales, strict=True)
    )
    return {
        "encoding": "base64 of little-endian uint16, row by row",
        "columns": record.vision_tokens,
        "full_scale": _FULL,
        "scales": scales,
        "data": base64.b64encode(packed).decode(),
    }, places


def _place(patch: Patch | None) -> list[float] | None:
    if patch is None:
        return None
    edges = (patch.left, patch.top, patch.right, patch.bottom)
    return [patch.image, *(round(edge, 6) for edge in edges)]
