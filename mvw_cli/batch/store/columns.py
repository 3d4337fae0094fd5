"""The columns of a table of records: flat, typed, each with one meaning.

A column is named after the key of the record, dots as underscores; `timings.` and `memory.` are
left out, for their keys say enough. What a table file looks like is not known here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from mvw_cli.batch.store.record import TIMINGS, clean
from mvw_cli.engine.completion import Withdrawal

Kind = Literal["text", "json", "int", "float"]
Value = str | int | float | None

_WRITTEN = ("answer", "reasoning", "text")
"""What the model wrote: empty means that it wrote nothing, null that it was not asked."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    name: str
    kind: Kind
    """`json` is text that holds a list or object, null instead of an empty one."""
    path: tuple[str | int, ...]
    """Keys and indices that lead to the value."""


def _columns(kind: Kind, *names: str, below: tuple[str | int, ...] = ()) -> Iterable[Column]:
    prefix = {name: f"{name}_" for name in ("withdrawal", "vision", "error")} | {"images": "image_"}
    start = prefix.get(str(below[0]), "") if below else ""
    return [Column(start + name, kind, (*below, name)) for name in names]


_IMAGE = ("images", 0)

COLUMNS: tuple[Column, ...] = (
    *_columns("text", "id", "status"),
    Column("image", "text", (*_IMAGE, "path")),
    *_columns("text", "question", "reference", "answer", "reasoning"),
    *_columns("json", "stages"),
    *_columns("text", "text", "finish_reason"),
    *_columns("int", "prompt_tokens", "vision_tokens", "generated_tokens"),
    *_columns("int", *(field.name for field in fields(Withdrawal)), below=("withdrawal",)),
    *_columns("float", "attended_per_token", below=("vision",)),
    *_columns("int", "entries_prefill", "withdrawals", "restores", below=("vision",)),
    *_columns("int", "offloaded_bytes_peak", below=("vision",)),
    *_columns("float", *TIMINGS, below=("timings",)),
    *_columns("int", "kv_bytes_prefill", "kv_bytes_end", below=("memory",)),
    *_columns("json", "remarks"),
    *_columns("int", "attempts"),
    *_columns("text", "type", "message", "cause", "hint", below=("error",)),
    *_columns("text", "sha256", below=_IMAGE),
    *_columns("int", "width_px", "height_px", below=_IMAGE),
    *_columns("int", "original_width_px", "original_height_px", below=_IMAGE),
    *_columns("int", "row", below=_IMAGE),
    *_columns("text", "column", below=_IMAGE),
    Column("images", "json", ("images",)),
    *_columns("text", "key", "run"),
)
"""In the order of the table: what is read most often first."""


def row(record: Mapping[str, Any]) -> tuple[Value, ...]:
    """Lay a record out as the values of `COLUMNS`.

    Raises:
        ValueError: a value is of another type than its column.
    """
    failed = record["status"] == "failed"
    values = []
    for column in COLUMNS:
        value = _at(record, column.path)
        if failed and value == "" and column.name in _WRITTEN:
            value = None
        values.append(_fit(value, column))
    return tuple(values)


def _at(value: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        if isinstance(value, Mapping) and isinstance(key, str):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int):
            value = value[key] if key < len(value) else None
        else:
            return None
    return value


def _fit(value: Any, column: Column) -> Value:
    if value is None:
        return None
    if column.kind == "json":
        # One image is in the columns of its own.
        if not value or (column.name == "images" and len(value) < 2):
            return None
        return clean(json.dumps(value, ensure_ascii=False))
    if column.kind == "text" and isinstance(value, str):
        return clean(value)
    if column.kind == "int" and type(value) is int and -(2**63) <= value < 2**63:
        return value
    if column.kind == "float" and type(value) in (int, float):
        return float(value)
    raise ValueError(f"{'.'.join(map(str, column.path))} is {json.dumps(value)[:60]}")
