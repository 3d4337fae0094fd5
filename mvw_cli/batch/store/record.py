"""One record: what came of one item, as one line of JSON.

The keys are a promise, described in docs/json.md: the same ones in the same order, whatever
happened; what is not known is null or empty. It does not know where records are kept.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Literal

from mvw_cli.adapter import Answer
from mvw_cli.batch.items import ImageRef, Item, item_key
from mvw_cli.engine.completion import Completion, Timings
from mvw_cli.errors import MvwError

if TYPE_CHECKING:
    from mvw_cli.images.reading import ImageFile

SCHEMA_VERSION = 1

_BEFORE = ("read_ms", "preprocess_ms")
_AFTER = ("latency_ms",)
OWN_TIMINGS = (*_BEFORE, *_AFTER)
"""Timings outside the engine. latency_ms: from the start of reading to the last token."""
TIMINGS = (*_BEFORE, *(field.name for field in fields(Timings)), *_AFTER)

_IMAGE = (
    *("path", "sha256", "width_px", "height_px"),
    *("original_width_px", "original_height_px"),
)
# json.dumps leaves these as they are, and str.splitlines takes them for the end of a line.
_LINE_ENDS = {0x85: r"\u0085", 0x2028: r"\u2028", 0x2029: r"\u2029"}


def success(
    item: Item,
    images: Sequence[ImageFile],
    completion: Completion,
    answer: Answer,
    *,
    run: str,
    timings: Mapping[str, float],
    remarks: Sequence[str],
    attempts: int,
) -> dict[str, Any]:
    """Record an answer.

    Args:
        run: short hash of the fingerprint of the settings that gave it.
        timings: any of `OWN_TIMINGS`.
    """
    withdrawal = completion.withdrawal
    return _record(
        item,
        images,
        status="ok",
        run=run,
        answer=answer.answer,
        reasoning=answer.reasoning,
        stages=dict(answer.stages),
        text=completion.text,
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.prompt_tokens,
        vision_tokens=completion.vision_tokens,
        generated_tokens=completion.generated_tokens,
        withdrawal=None if withdrawal is None else asdict(withdrawal),
        vision=asdict(completion.vision),
        timings=_timings(timings, asdict(completion.timings)),
        kv_bytes_prefill=completion.kv_bytes_prefill,
        kv_bytes_end=completion.kv_bytes_end,
        remarks=list(remarks),
        attempts=attempts,
    )


def failure(
    item: Item,
    images: Sequence[ImageFile],
    error: BaseException,
    *,
    run: str,
    attempts: int,
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """Record that an item failed.

    Args:
        images: those that could be read, the first ones of the item.
        timings: any of `OWN_TIMINGS`.
    """
    return _record(
        item,
        images,
        status="failed",
        run=run,
        timings=_timings(timings, {}),
        attempts=attempts,
        error=_error(error),
    )


def dumps(record: Mapping[str, Any]) -> bytes:
    """Write a record as one line of JSON, its end included.

    Numbers that JSON has no word for become null; halves of characters, as in file names that
    are not UTF-8, become their escapes, so that names that differ go on differing.
    """
    text = json.dumps(_sound(record), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_LINE_ENDS).encode() + b"\n"


def clean(text: str) -> str:
    """Write halves of characters as escapes: what `dumps` makes of this text."""
    return text.encode(errors="backslashreplace").decode()


def _record(
    item: Item,
    images: Sequence[ImageFile],
    *,
    status: Literal["ok", "failed"],
    run: str,
    timings: dict[str, float | None],
    attempts: int,
    answer: str = "",
    reasoning: str = "",
    stages: Mapping[str, str] | None = None,
    text: str = "",
    finish_reason: str | None = None,
    prompt_tokens: int | None = None,
    vision_tokens: int | None = None,
    generated_tokens: int | None = None,
    withdrawal: Mapping[str, int] | None = None,
    vision: Mapping[str, float] | None = None,
    kv_bytes_prefill: int | None = None,
    kv_bytes_end: int | None = None,
    remarks: Sequence[str] = (),
    error: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Put a record together: the one place that orders its keys."""
    read = [*images, *[None] * (len(item.images) - len(images))]
    hashes = [image.sha256 for image in images]
    return {
        "schema_version": SCHEMA_VERSION,
        "id": item.id,
        "status": status,
        "key": item_key(hashes, item.question) if len(hashes) == len(item.images) else None,
        "run": run,
        "images": [_image(ref, file) for ref, file in zip(item.images, read, strict=True)],
        "question": item.question,
        "reference": item.reference,
        "answer": answer,
        "reasoning": reasoning,
        "stages": dict(stages or {}),
        "text": text,
        "finish_reason": finish_reason,
        "prompt_tokens": prompt_tokens,
        "vision_tokens": vision_tokens,
        "generated_tokens": generated_tokens,
        "withdrawal": withdrawal,
        "vision": vision,
        "timings": timings,
        "memory": {"kv_bytes_prefill": kv_bytes_prefill, "kv_bytes_end": kv_bytes_end},
        "remarks": list(remarks),
        "attempts": attempts,
        "error": error,
    }


def _image(ref: ImageRef, file: ImageFile | None) -> dict[str, Any]:
    facts: dict[str, Any] = dict.fromkeys(_IMAGE)
    if file is not None:
        facts.update(
            sha256=file.sha256,
            width_px=file.size[0],
            height_px=file.size[1],
            original_width_px=file.original_size[0],
            original_height_px=file.original_size[1],
        )
    # As in the document of `mvw infer`.
    facts["path"] = os.fsencode(ref.path).decode(errors="replace")
    if ref.row is not None:
        facts.update(row=ref.row, column=ref.column)
    return facts


def _timings(own: Mapping[str, float], engine: Mapping[str, float]) -> dict[str, float | None]:
    unknown = own.keys() - set(OWN_TIMINGS)
    if unknown:
        raise ValueError(f"timings that no record has: {', '.join(sorted(unknown))}")
    measured = {**engine, **own}
    return {name: measured.get(name) for name in TIMINGS}


def _error(error: BaseException) -> dict[str, str | None]:
    if isinstance(error, MvwError):
        message, cause, hint = error.message, error.cause, error.hint
    else:
        message, cause, hint = next(iter(str(error).splitlines()), ""), None, None
    return {"type": type(error).__name__, "message": message, "cause": cause, "hint": hint}


def _sound(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean(str(key)): _sound(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_sound(inner) for inner in value]
    return value
