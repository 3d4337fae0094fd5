"""One record: what came of one item, as one line of JSON.

The keys are a promise, described in docs/json.md: the same ones in the same order, whatever
happened; what is not known is null or empty.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from mvw_cli.adapter import Answer
from mvw_cli.batch.items import ImageRef, Item, item_key
from mvw_cli.engine.types import Completion, Timings
from mvw_cli.errors import MvwError
from mvw_cli.text import as_unicode, escaped

if TYPE_CHECKING:
    from mvw_cli.images.reading import ImageFile

SCHEMA_VERSION = 1

TIMINGS = ("read_ms", "preprocess_ms", *(one.name for one in fields(Timings)), "latency_ms")
"""latency_ms: from the start of reading to the last token."""

_OF_COMPLETION = (
    *("text", "finish_reason", "prompt_tokens", "vision_tokens", "generated_tokens"),
    *("withdrawal", "vision"),
)


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
    """Record an answer; arguments as in `failure`."""
    known = asdict(completion)
    record = _blank(item, images, run, attempts, {**known["timings"], **timings})
    record |= {key: known[key] for key in _OF_COMPLETION}
    record["memory"] = {key: known[key] for key in record["memory"]}
    stages = dict(answer.stages)
    record |= {"answer": answer.answer, "reasoning": answer.reasoning, "stages": stages}
    return record | {"status": "ok", "remarks": list(remarks)}


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
        run: short hash of the fingerprint of the settings.
        timings: any of `TIMINGS` outside the engine.
    """
    message, cause, hint = next(iter(str(error).splitlines()), ""), None, None
    if isinstance(error, MvwError):
        message, cause, hint = error.message, error.cause, error.hint
    told = {"type": type(error).__name__, "message": message, "cause": cause, "hint": hint}
    return _blank(item, images, run, attempts, timings) | {"error": told}


def cause_of(record: Mapping[str, Any]) -> str:
    """Write why an item failed, without the names of its images, numbers and addresses.

    Two items failed alike where this is the same.
    """
    error = record["error"]
    told = f"{error['type']}: {error['message']}: {error['cause']}"
    for image in record["images"]:
        folder, name = os.path.split(image["path"])
        stem = re.escape(os.path.splitext(name)[0])
        own = [re.escape(image["path"]), *([re.escape(folder)] if folder else []), rf"{stem}\.\w+"]
        told = re.sub(rf"(?<!\w)({'|'.join(own)})(?!\w)", "…", told)
    return re.sub(r"0x[0-9a-fA-F]+|\d+", "0", told)


def dumps(record: Mapping[str, Any]) -> bytes:
    """Write a record as one line of JSON, its end included.

    Numbers that JSON has no word for become null; halves of characters, as in file names that
    are not UTF-8, become their escapes, so that names that differ go on differing.
    """
    text = json.dumps(_sound(record), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # json.dumps leaves characters as they are that str.splitlines takes for the end of a line.
    return escaped(text).encode() + b"\n"


def clean(text: str) -> str:
    """Write halves of characters as escapes: what `dumps` makes of this text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text


def digest(*texts: str) -> bytes:
    """Return 16 bytes that stand for texts in memory; the same before and after `dumps`."""
    joined = "\0".join(texts).encode(errors="backslashreplace")
    return hashlib.blake2b(joined, digest_size=16).digest()


def _blank(
    item: Item,
    images: Sequence[ImageFile],
    run: str,
    attempts: int,
    timings: Mapping[str, float],
) -> dict[str, Any]:
    """Put together the record of an item without an answer: the one place that orders the keys."""
    read = [*images, *[None] * (len(item.images) - len(images))]
    hashes = [image.sha256 for image in images]
    return {
        "schema_version": SCHEMA_VERSION,
        "id": item.id,
        "status": "failed",
        "key": item_key(hashes, item.question) if len(hashes) == len(item.images) else None,
        "run": run,
        "images": [_image(ref, file) for ref, file in zip(item.images, read, strict=True)],
        "question": item.question,
        "reference": item.reference,
        "answer": "",
        "reasoning": "",
        "stages": {},
        "text": "",
        "finish_reason": None,
        "prompt_tokens": None,
        "vision_tokens": None,
        "generated_tokens": None,
        "withdrawal": None,
        "vision": None,
        "timings": {name: timings.get(name) for name in TIMINGS},
        "memory": {"kv_bytes_prefill": None, "kv_bytes_end": None},
        "remarks": [],
        "attempts": attempts,
        "error": None,
    }


def _image(ref: ImageRef, file: ImageFile | None) -> dict[str, Any]:
    width, height = (None, None) if file is None else file.size
    original_width, original_height = (None, None) if file is None else file.original_size
    facts = {
        "path": as_unicode(ref.path),  # as in the document of `mvw infer`
        "sha256": None if file is None else file.sha256,
        "width_px": width,
        "height_px": height,
        "original_width_px": original_width,
        "original_height_px": original_height,
    }
    return facts if ref.row is None else facts | {"row": ref.row, "column": ref.cell}


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
