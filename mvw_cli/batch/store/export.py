"""The table of a log: CSV or Parquet, written as a whole or not at all.

Rows are read and written in groups, so that memory stays flat however long the log is. What the
columns are is known by `columns.py`.
"""

from __future__ import annotations

import csv
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

from mvw_cli.batch.store.columns import COLUMNS, Value, row
from mvw_cli.batch.store.index import Index
from mvw_cli.batch.store.lines import not_a_log, read_lines
from mvw_cli.batch.store.output import LOG, TABLES
from mvw_cli.batch.store.reserve import FULL, CannotRecord, DiskFull
from mvw_cli.errors import UsageProblem
from mvw_cli.files import check_writable, replacing

_GROUP_ROWS = 16384
_GROUP_BYTES = 8 << 20  # of text, as far as memory is concerned: rows may be of any length

Rows = Iterator[tuple[Value, ...]]


def is_table(path: Path) -> bool:
    """Say whether a file of this name is a table."""
    return path.suffix.lower() in TABLES


def log_of(output: Path) -> Path:
    """Name the log of an output: itself, or the file beside a table, as `answers.csv.jsonl`."""
    return output.with_name(f"{output.name}{LOG}") if is_table(output) else output


def check_table(table: Path, help_command: str) -> None:
    """Refuse a table that could not be written later.

    Args:
        help_command: what to type where nothing better can be told.

    Raises:
        UsageProblem: the path can't be written, or pyarrow is missing.
    """
    check_writable(str(table), help_command)
    if table.suffix.lower() == ".parquet":
        _pyarrow(table)


def export(log: Path, table: Path) -> int:
    """Write the table of a log; return the number of its rows.

    Each item is in it once, in the order of the log: an answer beats a failure, and of several
    records of the same kind the first counts. The format is that of the table's name.

    Raises:
        UsageProblem: the log is missing or holds something else, or pyarrow is missing.
        CannotRecord: the table can't be written; the one that was there is as it was.
        DiskFull: there is no room for it; the same.
    """
    write = _write_parquet if table.suffix.lower() == ".parquet" else _write_csv
    if write is _write_parquet:
        _pyarrow(table)
    with closing(Index()) as index:
        _fill(index, log)
        try:
            with replacing(Path(os.path.realpath(table))) as file:
                return write(_rows(log, index), file)
        except OSError as error:
            raise _unwritten(table, log, error) from None


def _fill(index: Index, log: Path) -> None:
    try:
        with log.open("rb") as file, index.many():
            for line in read_lines(file, str(log)):
                if line.record is not None:
                    index.add(line.record)
    except OSError as error:
        folder = shlex.quote(str(log.parent))
        cause = error.strerror or str(error)
        raise UsageProblem(f"Cannot read {log}", cause=cause, hint=f"ls -l {folder}") from None


def _rows(log: Path, index: Index) -> Rows:
    with log.open("rb") as file:
        for line in read_lines(file, str(log)):
            if line.record is None or not index.take(line.record):
                continue
            try:
                yield row(line.record)
            except ValueError as error:
                raise not_a_log(str(log), f"of {line.record['id']}, {error}") from None


def _write_csv(rows: Rows, file: BinaryIO) -> int:
    """Write as RFC 4180 says, in UTF-8. Texts are left as they are, so that they can be read back:
    a mark before what a spreadsheet takes for a formula would change answers such as -5.
    """
    # It quotes what holds a character of its line end: with \n alone, a \r would break rows.
    writer = csv.writer(_Encoding(file), lineterminator="\r\n")
    writer.writerow([column.name for column in COLUMNS])
    count = 0
    for values in rows:
        writer.writerow(values)
        count += 1
    return count


class _Encoding:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        self._file.write(text.encode())


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


def _pyarrow(table: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UsageProblem(
            f"Cannot write the table {table}",
            cause="that needs the package pyarrow, which is not installed",
            hint='pip install "mvw[parquet]"',
        ) from None
    return pyarrow


def _unwritten(table: Path, log: Path, error: OSError) -> CannotRecord:
    kind = DiskFull if error.errno in FULL else CannotRecord
    folder = shlex.quote(os.path.dirname(os.path.realpath(table)))
    return kind(
        f"Cannot write {table}",
        cause=f"{error.strerror or error}; the records are safe in {log}",
        hint=f"df -h {folder}",
    )
