"""The table of a log: CSV or Parquet, written as a whole or not at all.

A column is named after the key of the record, dots as underscores; `timings.` and `memory.` are
left out, for their keys say enough. Rows are read and written in groups, so that memory stays flat
however long the log is.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal

from mvw_cli.batch.store.jsonl import cannot_write
from mvw_cli.batch.store.log import RecordIndex
from mvw_cli.batch.store.reader import LogReader, not_a_log
from mvw_cli.batch.store.record import TIMINGS, clean
from mvw_cli.engine.types import Withdrawal
from mvw_cli.errors import UsageProblem
from mvw_cli.files import check_writable, replacing

_GROUP_ROWS = 16384
_GROUP_BYTES = 8 << 20  # of text, as far as memory is concerned: rows may be of any length
_WRITTEN = ("answer", "reasoning", "text")
"""What the model wrote: empty means that it wrote nothing, null that it was not asked."""

Value = str | int | float | None
Rows = Iterator[tuple[Value, ...]]
Kind = Literal["text", "json", "int", "float"]


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


def check_table(table: Path, help_command: str) -> None:
    """Refuse a table that could not be written later.

    Args:
        help_command: what to type where nothing better can be told.

    Raises:
        UsageProblem: the path can't be written, or pyarrow is missing.
    """
    check_writable(str(table), help_command)
    _check_pyarrow(table)


def export(log: Path, table: Path) -> int:
    """Write the table of a log; return the number of its rows.

    Each item is in it once, in the order of the log: an answer beats a failure, and of several
    records of the same kind the first counts. The format is that of the table's name.

    Raises:
        UsageProblem: the log is missing or holds something else, or pyarrow is missing.
        CannotRecord: the table can't be written; the one that was there is as it was.
        DiskFull: there is no room for it; the same.
    """
    _check_pyarrow(table)
    index = RecordIndex()
    for record, _ in LogReader(log, str(log)):
        index.add(record)
    write = _write_parquet if table.suffix.lower() == ".parquet" else _write_csv
    try:
        with replacing(Path(os.path.realpath(table))) as file:
            return write(_rows(log, index), file)
    except OSError as error:
        safe = f"the records are safe in {log}"
        raise cannot_write(str(table), error, safe) from None


def _rows(log: Path, index: RecordIndex) -> Rows:
    for record, _ in LogReader(log, str(log)):
        if not index.take(record):
            continue
        try:
            yield _row(record)
        except ValueError as error:
            raise not_a_log(str(log), f"of {record['id']}, {error}") from None


def _row(record: Mapping[str, Any]) -> tuple[Value, ...]:
    """Lay a record out as the values of `COLUMNS`; ValueError for one of another type."""
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


def _write_csv(rows: Rows, file: BinaryIO) -> int:
    """Write as RFC 4180 says, in UTF-8. Texts are left as they are, so that they can be read back:
    a mark before what a spreadsheet takes for a formula would change answers such as -5.
    """
    text = io.TextIOWrapper(file, "utf-8", newline="")
    # It quotes what holds a character of its line end: with \n alone, a \r would break rows.
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([column.name for column in COLUMNS])
    count = 0
    for values in rows:
        writer.writerow(values)
        count += 1
    text.detach()
    return count


def _write_parquet(rows: Rows, file: BinaryIO) -> int:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    kinds = {"text": pa.string(), "json": pa.string(), "int": pa.int64(), "float": pa.float64()}
    schema = pa.schema([(column.name, kinds[column.kind]) for column in COLUMNS])
    count = 0
    with ParquetWriter(file, schema) as writer:
        for group in _groups(rows):
            columns = zip(*group, strict=True)
            arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema), row_group_size=len(group))
            count += len(group)
    return count


def _groups(rows: Rows) -> Iterator[Sequence[tuple[Value, ...]]]:
    group: list[tuple[Value, ...]] = []
    size = 0
    for values in rows:
        group.append(values)
        size += sum(len(value) for value in values if isinstance(value, str))
        if len(group) == _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _check_pyarrow(table: Path) -> None:
    if table.suffix.lower() != ".parquet":
        return
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UsageProblem(
            f"Cannot write the table {table}",
            cause="that needs the package pyarrow, which is not installed",
            hint='pip install "mvw[parquet]"',
        ) from None
