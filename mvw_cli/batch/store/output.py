"""Where the records of a run end up: a log, one JSON line each, and a table that is made of it.

A table (CSV or Parquet) can't be appended to safely, so it is made when a run ends. Rows are read
and written in groups: memory stays flat however long the log is.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from mvw_cli.batch.items import is_address
from mvw_cli.batch.source.table import check_pyarrow
from mvw_cli.batch.store.fingerprint import sidecar_path
from mvw_cli.batch.store.jsonl import cannot_write
from mvw_cli.batch.store.log import LogReader, RecordIndex, damaged_path, not_a_log
from mvw_cli.batch.store.record import TIMINGS
from mvw_cli.engine.types import Withdrawal
from mvw_cli.errors import UsageProblem
from mvw_cli.files import check_writable, replacing
from mvw_cli.text import is_unicode

LOG = ".jsonl"
TABLES = (".csv", ".parquet")
_GROUP_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Output:
    """The files of one run."""

    name: str
    """What the user calls it."""
    log: Path
    """Records as they come, one JSON line each."""
    table: Path | None = None
    """The same as a table, at the end."""

    @property
    def files(self) -> list[str]:
        """All that a run may write."""
        written = (self.log, self.table, sidecar_path(self.log), damaged_path(self.log))
        return [str(path) for path in written if path is not None]


def plan_output(given: str | None, default: str) -> Output:
    """Work out the files from what the user asks for."""
    name = given or default
    check_name(name, ["mvw", "batch", "IMAGES", "QUESTION"])
    path = Path(name)
    return Output(name, log_of(path), path if is_table(path) else None)


def is_table(path: Path) -> bool:
    """Whether a file of this name is a table."""
    return path.suffix.lower() in TABLES


def log_of(output: Path) -> Path:
    """Name the log of an output: itself, or the file beside a table, as `answers.csv.jsonl`."""
    return output.with_name(f"{output.name}{LOG}") if is_table(output) else output


def check_name(name: str, command: Sequence[str]) -> None:
    """Refuse an output whose name does not tell what it is, or that is not on this machine.

    Args:
        command: that goes with `-o`, for the hint.
    """
    suffix = "" if name.endswith("/") else Path(name).suffix
    cause = f"its name ends in {suffix}" if suffix else "its name has no such ending"
    if is_address(name):
        cause = "it is an address, and records are appended to a file of this machine"
    elif suffix.lower() in (LOG, *TABLES):
        return
    folder = "" if is_address(name) else os.path.dirname(name)
    better = os.path.join(folder, f"{Path(name).stem.strip('.') or 'results'}{LOG}")
    raise UsageProblem(
        f"-o {name}: records go to a .jsonl, .csv or .parquet file",
        cause=cause,
        hint=shlex.join([*command, "-o", better]),
    )


# -- the table of a log ------------------------------------------------------------------------

Row = tuple[str | int | float | None, ...]
Kind = Literal["text", "json", "int", "float"]
_KINDS: dict[Kind, tuple[Any, ...]] = {
    "text": (0, str),
    "json": (0, str),
    "int": ((1 << 63) - 1, int),
    "float": (1 << 53, float, int),
}
"""What a column of a kind holds: whole numbers up to this one, exactly, and these types."""


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


def export(log: Path, table: Path) -> None:
    """Write the table of a log, in the format of the table's name.

    Each item is in it once, in the order of the log: an answer beats a failure, and of several
    records of the same kind the first counts.

    Raises:
        UsageProblem: the log is missing or holds something else, or pyarrow is missing.
        CannotRecord: the table can't be written; the one that was there is as it was.
    """
    if _is_parquet(table):
        check_pyarrow(str(table), "write")
    index, reader = RecordIndex(), LogReader(log, str(log))
    for record, _ in reader:
        index.add(record)
    rows = (row_of(record, line, reader) for record, line in reader if index.take(record))
    write = _write_parquet if _is_parquet(table) else _write_csv
    try:
        with replacing(Path(os.path.realpath(table))) as file:
            write(rows, file)
    except OSError as error:
        raise cannot_write(str(table), error, f"the records are safe in {log}") from None


def row_of(record: Mapping[str, Any], line: bytes, reader: LogReader) -> Row:
    """Return what a table has of a record that has just been read, whatever the table's format.

    Args:
        line: of the log, which the record was read from.

    Raises:
        UsageProblem: a value is none that its column can hold; names log, line and column.
    """
    row = tuple(_value(record, column) for column in COLUMNS)
    halves = b"\\ud" in line.lower()  # escapes of characters' halves, which are whole in pairs
    for column, value in zip(COLUMNS, row, strict=True):
        if value is None:
            continue
        most, *types = _KINDS[column.kind]
        fits = type(value) in types and not (isinstance(value, int) and abs(value) > most)
        if not fits or (halves and isinstance(value, str) and not is_unicode(value)):
            cause = f"line {reader.number}: {column.name} is {json.dumps(value)[:60]}"
            hint = f"sed -n {reader.number}p {shlex.quote(reader.name)}"
            raise not_a_log(reader.name, cause, hint)
    return row


def _is_parquet(table: Path) -> bool:
    return table.suffix.lower() == ".parquet"


def _value(record: Mapping[str, Any], column: Column) -> Any:
    """Return what stands in a column."""
    value: Any = record
    for key in column.path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):  # null, or a shorter list
            return None
    if column.kind == "json":
        # One image is in the columns of its own.
        is_empty = not value or (column.name == "images" and len(value) < 2)
        return None if is_empty else json.dumps(value, ensure_ascii=False)
    # An answer that is empty was given, and one of a failed item was not.
    return None if value == "" and record["status"] == "failed" else value


def _write_csv(rows: Iterator[Row], file: BinaryIO) -> None:
    """Write as RFC 4180 says, in UTF-8. Texts are left as they are, so that they can be read back:
    a mark before what a spreadsheet takes for a formula would change answers such as -5.
    """
    text = io.TextIOWrapper(file, "utf-8", newline="")
    # It quotes what holds a character of its line end: with \n alone, a \r would break rows.
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([column.name for column in COLUMNS])
    writer.writerows(rows)
    text.detach()


def _write_parquet(rows: Iterator[Row], file: BinaryIO) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    kinds = {"text": pa.string(), "json": pa.string(), "int": pa.int64(), "float": pa.float64()}
    schema = pa.schema([(column.name, kinds[column.kind]) for column in COLUMNS])
    with ParquetWriter(file, schema) as writer:
        while group := list(islice(rows, _GROUP_ROWS)):
            columns = zip(*group, strict=True)
            arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema))
