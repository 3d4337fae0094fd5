"""Where the records of a run end up: a log on this machine, and from there a table or an address.

A table (CSV or Parquet) is made of the log when a run ends, and so is the copy at an address of
fsspec: neither can be appended to safely. Rows are read and written in groups, so that memory stays
flat however long the log is.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal

from mvw_cli.batch.items import is_address
from mvw_cli.batch.source.paths import fetch_file, store_file
from mvw_cli.batch.source.table import check_pyarrow
from mvw_cli.batch.store.fingerprint import sidecar_path
from mvw_cli.batch.store.jsonl import cannot_write
from mvw_cli.batch.store.log import LogReader, RecordIndex, not_a_log
from mvw_cli.batch.store.record import TIMINGS, clean
from mvw_cli.engine.types import Withdrawal
from mvw_cli.errors import UsageProblem
from mvw_cli.files import check_writable, replacing

LOG = ".jsonl"
TABLES = (".csv", ".parquet")

_GROUP_ROWS = 16384
_GROUP_BYTES = 8 << 20  # of text, as far as memory is concerned: rows may be of any length
_WRITTEN = ("answer", "reasoning", "text")
"""What the model wrote: empty means that it wrote nothing, null that it was not asked."""


@dataclass(frozen=True, slots=True)
class Output:
    """The files of one run."""

    name: str
    """What the user calls it."""
    log: Path
    """Records as they come, one JSON line each."""
    table: Path | None = None
    """The same as a table, at the end."""
    address: str | None = None
    """Where the result is copied to, at the end."""

    def fetch(self) -> bool:
        """Bring a log that another machine has left at the address; return whether there was one.

        A log that is here is newer, and stays.
        """
        if self.address is None or self.log.exists():
            return False
        log, sidecar = self._addresses(self.address)
        if not fetch_file(log, self.log):
            return False
        fetch_file(sidecar, sidecar_path(self.log))
        return True

    def publish(self) -> None:
        """Make the table, and copy everything to the address.

        Raises:
            MvwError: the table can't be written, or the address is not reached; the log is whole.
        """
        if not self.log.exists():
            return
        if self.table is not None:
            export(self.log, self.table)
        if self.address is None:
            return
        log, sidecar = self._addresses(self.address)
        store_file(self.log, log)
        if sidecar_path(self.log).exists():
            store_file(sidecar_path(self.log), sidecar)
        if self.table is not None:
            store_file(self.table, self.address)

    def _addresses(self, address: str) -> tuple[str, str]:
        """Return where the log goes, and its sidecar."""
        log = address if self.table is None else f"{address}{LOG}"
        return log, log + sidecar_path(self.log).name.removeprefix(self.log.name)


def is_table(path: Path) -> bool:
    """Whether a file of this name is a table."""
    return path.suffix.lower() in TABLES


def log_of(output: Path) -> Path:
    """Name the log of an output: itself, or the file beside a table, as `answers.csv.jsonl`."""
    return output.with_name(f"{output.name}{LOG}") if is_table(output) else output


def check_name(name: str, command: str) -> None:
    """Refuse an output whose name does not tell what it is; in `command` it does."""
    suffix = "" if name.endswith("/") else Path(name).suffix
    if suffix.lower() not in (LOG, *TABLES):
        raise UsageProblem(
            f"-o {name}: records go to a .jsonl, .csv or .parquet file",
            cause=f"its name ends in {suffix}" if suffix else "its name has no such ending",
            hint=command,
        )


def plan_output(given: str | None, default: str) -> Output:
    """Work out the files from what the user asks for: a path or an address."""
    name = given or default
    folder, slash, last = name.rpartition("/")
    better = f"{folder}{slash}{default}"
    if last.strip("-") and not last.startswith("."):
        better = f"{name.removesuffix(Path(name).suffix)}{LOG}"
    check_name(name, shlex.join(["mvw", "batch", "IMAGES", "QUESTION", "-o", better]))
    address = name if is_address(name) else None
    local = Path(last) if address else Path(name)
    log = log_of(local)
    return Output(name, log, table=local if log != local else None, address=address)


# -- the table of a log ------------------------------------------------------------------------

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


def _columns(kind: Kind, *names: str, below: str = "", prefix: str = "") -> list[Column]:
    start: tuple[str | int, ...] = {"": (), "images": ("images", 0)}.get(below, (below,))
    return [Column(prefix + name, kind, (*start, name)) for name in names]


_withdrawal = {"below": "withdrawal", "prefix": "withdrawal_"}
_vision = {"below": "vision", "prefix": "vision_"}
_image = {"below": "images", "prefix": "image_"}

COLUMNS: tuple[Column, ...] = (
    *_columns("text", "id", "status"),
    Column("image", "text", ("images", 0, "path")),
    *_columns("text", "question", "reference", "answer", "reasoning"),
    *_columns("json", "stages"),
    *_columns("text", "text", "finish_reason"),
    *_columns("int", "prompt_tokens", "vision_tokens", "generated_tokens"),
    *_columns("int", *(field.name for field in fields(Withdrawal)), **_withdrawal),
    *_columns("float", "attended_per_token", **_vision),
    *_columns("int", "entries_prefill", "withdrawals", "restores", **_vision),
    *_columns("int", "offloaded_bytes_peak", **_vision),
    *_columns("float", *TIMINGS, below="timings"),
    *_columns("int", "kv_bytes_prefill", "kv_bytes_end", below="memory"),
    *_columns("json", "remarks"),
    *_columns("int", "attempts"),
    *_columns("text", "type", "message", "cause", "hint", below="error", prefix="error_"),
    *_columns("text", "sha256", **_image),
    *_columns("int", "width_px", "height_px", "original_width_px", "original_height_px", **_image),
    *_columns("int", "row", **_image),
    *_columns("text", "column", **_image),
    *_columns("json", "images"),
    *_columns("text", "key", "run"),
)
"""In the order of the table: what is read most often first."""


def check_table(table: Path) -> None:
    """Refuse a table that could not be written later."""
    check_writable(str(table))
    if _is_parquet(table):
        check_pyarrow(str(table), "write")


def export(log: Path, table: Path) -> int:
    """Write the table of a log; return the number of its rows.

    Each item is in it once, in the order of the log: an answer beats a failure, and of several
    records of the same kind the first counts. The format is that of the table's name.

    Raises:
        UsageProblem: the log is missing or holds something else, or pyarrow is missing.
        CannotRecord: the table can't be written; the one that was there is as it was.
    """
    if _is_parquet(table):
        check_pyarrow(str(table), "write")
    index = RecordIndex()
    for record, _ in LogReader(log, str(log)):
        index.add(record)
    write = _write_parquet if _is_parquet(table) else _write_csv
    try:
        with replacing(Path(os.path.realpath(table))) as file:
            return write(_rows(log, index), file)
    except OSError as error:
        safe = f"the records are safe in {log}"
        raise cannot_write(str(table), error, safe) from None


def _is_parquet(table: Path) -> bool:
    return table.suffix.lower() == ".parquet"


def _rows(log: Path, index: RecordIndex) -> Rows:
    for record, _ in LogReader(log, str(log)):
        if index.take(record):
            try:
                yield tuple(_value(record, column) for column in COLUMNS)
            except ValueError as error:
                raise not_a_log(str(log), f"of {record['id']}, {error}") from None


def _value(record: Mapping[str, Any], column: Column) -> Value:
    """Return what stands in a column; ValueError where it is of another type."""
    value: Any = record
    for key in column.path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):  # null, or a shorter list
            return None
    if value is None or (value == "" and record["status"] == "failed" and column.name in _WRITTEN):
        return None
    if column.kind == "json":
        # One image is in the columns of its own.
        is_empty = not value or (column.name == "images" and len(value) < 2)
        return None if is_empty else clean(json.dumps(value, ensure_ascii=False))
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
