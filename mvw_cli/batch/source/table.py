"""Tables: Parquet, and Arrow as `datasets` writes it with save_to_disk, read from front to back.

`list_rows` makes items of rows and leaves the images alone; `Cells` reads these, one by one.
pyarrow is imported when a table is opened.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Any

from mvw_cli.batch.items import ImageRef, Item, as_text, is_address
from mvw_cli.batch.source.paths import Source, join, open_address, suffix
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.text import error_line

_ROWS = 1024  # of small columns at a time
_BUFFER = 1 << 20  # bytes; without it pyarrow holds a column's whole row group
_BATCH = 16 << 20  # bytes of images at a time
_OPEN = 2  # columns: an item may have images in two, and files follow one another

# How the names of Arrow's types begin.
_BYTES = ("binary", "large_binary", "fixed_size_binary")
_TEXT = (
    *("string", "large_string"),
    *("dictionary<values=string", "dictionary<values=large_string"),
)


class Table:
    """An open Parquet or Arrow file, read from the front by one thread."""

    def __init__(self, path: str) -> None:
        check_pyarrow(path, "read")
        self.path = path
        self._file = _open(path)
        try:
            self._parquet = self._open_parquet() if suffix(path) != ".arrow" else None
            self.schema = self._parquet.schema_arrow if self._parquet else self._arrow().schema
        except BaseException:
            self.close()
            raise

    def _open_parquet(self) -> Any:
        from pyarrow.parquet import ParquetFile

        return ParquetFile(self._file, buffer_size=_BUFFER, pre_buffer=False)

    def _arrow(self, columns: Sequence[str] = ()) -> Any:
        """Open the file from its start: a stream, or the format with a footer."""
        from pyarrow import ipc

        indices = [self.schema.get_field_index(name) for name in columns]
        options = ipc.IpcReadOptions(use_threads=False, included_fields=indices or None)
        self._file.seek(0)
        has_footer = self._file.read(6) == b"ARROW1"
        self._file.seek(0)
        return (ipc.open_file if has_footer else ipc.open_stream)(self._file, options=options)

    def batches(
        self, columns: Sequence[str], *, row: int = 0, bytes_at_once: int | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield record batches with the number of their first row.

        Args:
            row: start no later than here, as close as the format allows.
            bytes_at_once: roughly how large a batch of Parquet may be; Arrow has its own.
        """
        first = 0
        if self._parquet is None:
            reader = self._arrow(columns)
            count = getattr(reader, "num_record_batches", None)
            for batch in reader if count is None else map(reader.get_batch, range(count)):
                yield first, batch
                first += batch.num_rows
            return
        for group in range(self._parquet.metadata.num_row_groups):
            metadata = self._parquet.metadata.row_group(group)
            if first + metadata.num_rows <= row:
                first += metadata.num_rows
                continue
            size = _ROWS
            if bytes_at_once is not None:
                size = _rows_at_once(metadata, columns, bytes_at_once)
            for batch in self._parquet.iter_batches(
                size, row_groups=[group], columns=list(columns), use_threads=False
            ):
                yield first, batch
                first += batch.num_rows

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _rows_at_once(metadata: Any, columns: Sequence[str], bytes_at_once: int) -> int:
    chunks = (metadata.column(index) for index in range(metadata.num_columns))
    total: int = sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema.partition(".")[0] in columns
    )
    rows = bytes_at_once * int(metadata.num_rows) // max(1, total)
    return max(1, min(_ROWS, rows))


@dataclass(frozen=True, slots=True)
class _Columns:
    image: str
    image_is_path: bool
    question: str | None
    id: str | None
    answer: str | None

    @property
    def read(self) -> list[str]:
        """What listing reads: all but images, if these are more than their paths."""
        image = self.image if self.image_is_path else None
        names = (image, self.question, self.id, self.answer)
        return list(dict.fromkeys(name for name in names if name))


def list_rows(path: str, name: str, source: Source) -> Iterator[Item]:
    """Yield the rows of a table as items; `name` is what their ids begin with.

    Raises:
        UsageProblem: it is no table, or lacks a column or a question.
    """
    try:
        with closing(Table(path)) as table:
            columns = _choose(table, source)
            for first, batch in table.batches(columns.read):
                values = {column: batch.column(column).to_pylist() for column in columns.read}
                for index in range(batch.num_rows):
                    row = {column: listed[index] for column, listed in values.items()}
                    yield _item(path, name, first + index, row, columns, source)
    except MvwError:
        raise
    except Exception as error:  # pyarrow's, the file system's, those of fsspec's backends
        raise UsageProblem(
            f"Cannot read the table {path}",
            cause=error_line(error),
            hint=f"file {shlex.quote(path)}",
        ) from None


def check_pyarrow(table: str, action: str) -> None:
    """Refuse to read or write a table without pyarrow."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UsageProblem(
            f"Cannot {action} the table {table}",
            cause="that needs the package pyarrow, which is not installed",
            hint='pip install "mvw[parquet]"',
        ) from None


def _item(
    path: str, name: str, number: int, row: dict[str, Any], columns: _Columns, source: Source
) -> Item:
    image = ImageRef(path, number, columns.image)
    if columns.image_is_path and row[columns.image]:
        image = ImageRef(join(os.path.dirname(path), row[columns.image]))
    question = row[columns.question] if columns.question else None
    if question is None:
        question = source.question
    if question is None:
        raise UsageProblem(
            f"Row {number} of {path} has no question",
            cause="nor is there another question to ask",
            hint=source.hint(path),
        )
    id = as_text(row[columns.id]) if columns.id else None
    reference = as_text(row[columns.answer]) if columns.answer else None
    return Item(f"{name}#{number}" if id is None else id, (image,), question, reference)


def _choose(table: Table, source: Source) -> _Columns:
    """Find the columns: those that were named, else those with the usual names."""
    types = {name: table.schema.field(name).type for name in table.schema.names}

    def column(usual: str, named: str | None) -> str | None:
        if named is not None and named not in types:
            raise UsageProblem(
                f"There is no column {named} in {table.path}",
                cause=f"its columns are: {', '.join(types)}",
                hint=source.hint(table.path),
            )
        return named or (usual if usual in types else None)

    def wrong_type(name: str, role: str, wanted: str) -> UsageProblem:
        held = str(types[name])
        held = held if len(held) < 60 else f"{held[:57]}..."
        return UsageProblem(
            f"The column {name} of {table.path} holds no {role}s",
            cause=f"it holds {held}, not {wanted}",
            hint=source.hint(table.path, f"--{role}-column", "NAME"),
        )

    image = column("image", source.image_column)
    if image is None:
        likely = [name for name, kind in types.items() if _is_image(kind)] or ["NAME"]
        raise UsageProblem(
            f"There is no column image in {table.path}",
            cause=f"its columns are: {', '.join(types) or 'none'}",
            hint=source.hint(table.path, "--image-column", likely[0]),
        )
    is_path = str(types[image]).startswith(_TEXT)
    if not is_path and not _is_image(types[image]):
        raise wrong_type(image, "image", "bytes, paths or both")
    question = column("question", source.question_column)
    if question is not None and not str(types[question]).startswith(_TEXT):
        raise wrong_type(question, "question", "text")
    id, answer = column("id", source.id_column), column("answer", source.answer_column)
    return _Columns(image, is_path, question, id, answer)


def _is_image(kind: Any) -> bool:
    """Whether an Arrow type is bytes, or `datasets`' struct of bytes and path."""
    if str(kind).startswith("struct<"):
        return not {"bytes", "path"}.isdisjoint(field.name for field in kind)
    return str(kind).startswith(_BYTES)


class Cells:
    """Reads cells for one thread. Holds at most two batches and two open files."""

    def __init__(self) -> None:
        self._columns: OrderedDict[tuple[str, str], _Column] = OrderedDict()

    def cell(self, path: str, row: int, column: str) -> Any:
        """Return a cell as Python's own kind of value.

        Raises:
            MvwError: there is no such row or column, or no pyarrow.
            Exception: of pyarrow or the file system, where the table cannot be read.
        """
        key = (path, column)
        # Taken out while it is read: what has failed half-way is not used again.
        reader = self._columns.pop(key, None) or _Column(path, column)
        try:
            found = reader.at(row)
        except BaseException:
            reader.table.close()
            raise
        self._columns[key] = reader
        if len(self._columns) > _OPEN:
            self._columns.popitem(last=False)[1].table.close()
        return found

    def close(self) -> None:
        """Close the files."""
        while self._columns:
            self._columns.popitem()[1].table.close()


class _Column:
    def __init__(self, path: str, name: str) -> None:
        self.table = Table(path)
        self._name = name
        self._batches: Iterator[tuple[int, Any]] = iter(())
        self._first, self._cells = 0, None

    def at(self, row: int) -> Any:
        if self._name not in self.table.schema.names:
            raise self._changed(row, f"there is no column {self._name}")
        if self._cells is None or row < self._first:
            self._cells = None
            self._batches = self.table.batches([self._name], row=row, bytes_at_once=_BATCH)
        while self._cells is None or row >= self._first + len(self._cells):
            self._cells = None  # freed before the next one is read
            read = next(self._batches, None)
            if read is None:
                raise self._changed(row, f"there is no row {row}")
            self._first, self._cells = read[0], read[1].column(self._name)
        return self._cells[row - self._first].as_py()

    def _changed(self, row: int, cause: str) -> MvwError:
        image = ImageRef(self.table.path, row, self._name)
        return MvwError(f"Cannot read the image {image}", cause=f"{cause}; the table has changed")


def _open(path: str) -> IO[bytes]:
    """Open through Python's own files: pyarrow's know no names that are not UTF-8."""
    if is_address(path):
        return open_address(path)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise UsageProblem(
            f"Cannot read the table {path}",
            cause="it is no regular file",
            hint=f"ls -l {shlex.quote(path)}",
        )
    return open(path, "rb")
