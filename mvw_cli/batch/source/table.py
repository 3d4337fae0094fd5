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
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

from mvw_cli.batch.items import ImageRef, Item, as_text, is_address
from mvw_cli.batch.source.paths import Source, join, suffix
from mvw_cli.batch.source.remote import open_address
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.text import error_line

_ROWS = 1024  # of small columns at a time
_BUFFER = 1 << 20  # bytes; without it pyarrow holds a column's whole row group
_BATCH = 16 << 20  # bytes of images at a time
_OPEN = 2  # columns: an item may have images in two, and files follow one another


class Table:
    """An open Parquet or Arrow file, read from the front by one thread."""

    def __init__(self, path: str) -> None:
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
        magic = self._file.read(6)
        self._file.seek(0)
        if magic == b"ARROW1":
            return ipc.open_file(self._file, options=options)
        return ipc.open_stream(self._file, options=options)

    def batches(
        self, columns: Sequence[str], *, row: int = 0, bytes_at_once: int | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield record batches with the number of their first row.

        Args:
            row: start no later than here, as close as the format allows.
            bytes_at_once: roughly how large a batch of Parquet may be; Arrow has its own.
        """
        if self._parquet is None:
            yield from self._arrow_batches(columns)
            return
        metadata, first = self._parquet.metadata, 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if first + rows > row:
                size = self._rows_at_once(group, columns, bytes_at_once)
                yield from self._group(group, first, columns, size)
            first += rows

    def _group(
        self, group: int, first: int, columns: Sequence[str], size: int
    ) -> Iterator[tuple[int, Any]]:
        assert self._parquet is not None
        for batch in self._parquet.iter_batches(
            size, row_groups=[group], columns=list(columns), use_threads=False
        ):
            yield first, batch
            first += batch.num_rows

    def _rows_at_once(self, group: int, columns: Sequence[str], bytes_at_once: int | None) -> int:
        if bytes_at_once is None:
            return _ROWS
        assert self._parquet is not None
        metadata = self._parquet.metadata.row_group(group)
        chunks = (metadata.column(index) for index in range(metadata.num_columns))
        total: int = sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if chunk.path_in_schema.partition(".")[0] in columns
        )
        rows = bytes_at_once * int(metadata.num_rows) // max(1, total)
        return max(1, min(_ROWS, rows))

    def _arrow_batches(self, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        reader, first = self._arrow(columns), 0
        count = getattr(reader, "num_record_batches", None)
        for batch in reader if count is None else map(reader.get_batch, range(count)):
            yield first, batch
            first += batch.num_rows

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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
        with Table(path) as table:
            columns = _choose(table, source)
            for first, batch in table.batches(columns.read):
                values = {column: batch.column(column).to_pylist() for column in columns.read}
                for index in range(batch.num_rows):
                    row = {column: listed[index] for column, listed in values.items()}
                    yield _item(path, name, first + index, row, columns, source)
    except MvwError:
        raise
    except ImportError:
        raise no_pyarrow(path) from None
    except Exception as error:  # pyarrow's, the file system's, those of fsspec's backends
        raise UsageProblem(
            f"Cannot read the table {path}",
            cause=error_line(error),
            hint=f"file {shlex.quote(path)}",
        ) from None


def no_pyarrow(path: str) -> UsageProblem:
    """Name the package that reads tables."""
    return UsageProblem(
        f"Cannot read the table {path}",
        cause="that needs the package pyarrow, which is not installed",
        hint='pip install "mvw[parquet]"',
    )


def below_table(table: str, path: str) -> str:
    """Where a path lies that stands in a table: relative ones start at the table's folder."""
    if is_address(path) or os.path.isabs(path):
        return path
    folder = table.rpartition("/")[0] if is_address(table) else os.path.dirname(table)
    return join(folder, path)


def _item(
    path: str, name: str, number: int, row: dict[str, Any], columns: _Columns, source: Source
) -> Item:
    image = ImageRef(path, number, columns.image)
    if columns.image_is_path and row[columns.image]:
        image = ImageRef(below_table(path, row[columns.image]))
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
    image = _column(table, source, "image", source.image_column)
    if image is None:
        raise _no_images(table, source)
    kind = table.schema.field(image).type
    if not (_is_text(kind) or _is_image(kind)):
        raise UsageProblem(
            f"The column {image} of {table.path} holds no images",
            cause=f"it holds {_type_name(kind)}, not bytes, paths or both",
            hint=source.hint(table.path, "--image-column", "NAME"),
        )
    question = _column(table, source, "question", source.question_column)
    if question is not None and not _is_text(table.schema.field(question).type):
        raise UsageProblem(
            f"The column {question} of {table.path} holds no questions",
            cause=f"it holds {_type_name(table.schema.field(question).type)}, not text",
            hint=source.hint(table.path, "--question-column", "NAME"),
        )
    return _Columns(
        image,
        _is_text(kind),
        question,
        _column(table, source, "id", source.id_column),
        _column(table, source, "answer", source.answer_column),
    )


def _column(table: Table, source: Source, usual: str, named: str | None) -> str | None:
    names = table.schema.names
    if named is None:
        return usual if usual in names else None
    if named not in names:
        raise UsageProblem(
            f"There is no column {named} in {table.path}",
            cause=f"its columns are: {', '.join(names)}",
            hint=source.hint(table.path),
        )
    return named


def _no_images(table: Table, source: Source) -> UsageProblem:
    fields = [table.schema.field(name) for name in table.schema.names]
    likely = [field.name for field in fields if _is_image(field.type)] or ["NAME"]
    return UsageProblem(
        f"There is no column image in {table.path}",
        cause=f"its columns are: {', '.join(table.schema.names) or 'none'}",
        hint=source.hint(table.path, "--image-column", likely[0]),
    )


class Cells:
    """Reads cells for one thread. Holds at most two batches and two open files."""

    def __init__(self) -> None:
        self._columns: OrderedDict[tuple[str, str], _Column] = OrderedDict()

    def cell(self, path: str, row: int, column: str) -> Any:
        """Return a cell as Python's own kind of value.

        Raises:
            IndexError: there is no such row.
            KeyError: there is no such column.
            Exception: of pyarrow or the file system, where the table cannot be read.
        """
        key = (path, column)
        # Taken out while it is read: what has failed half-way is not used again.
        reader = self._columns.pop(key, None) or _Column(path, column)
        try:
            found = reader.at(row)
        except BaseException:
            reader.close()
            raise
        self._columns[key] = reader
        if len(self._columns) > _OPEN:
            self._columns.popitem(last=False)[1].close()
        return found

    def close(self) -> None:
        """Close the files."""
        while self._columns:
            self._columns.popitem()[1].close()


class _Column:
    def __init__(self, path: str, column: str) -> None:
        self._table = Table(path)
        self._name = column
        self._batches: Iterator[tuple[int, Any]] = iter(())
        self._first, self._cells = 0, None
        if column not in self._table.schema.names:
            self._table.close()
            raise KeyError(f"there is no column {column}")

    def at(self, row: int) -> Any:
        if self._cells is None or row < self._first:
            self._restart(row)
        while self._cells is None or row >= self._first + len(self._cells):
            self._cells = None  # freed before the next one is read
            read = next(self._batches, None)
            if read is None:
                raise IndexError(f"there is no row {row}")
            self._first, self._cells = read[0], read[1].column(self._name)
        return self._cells[row - self._first].as_py()

    def _restart(self, row: int) -> None:
        self._cells = None
        self._batches = self._table.batches([self._name], row=row, bytes_at_once=_BATCH)

    def close(self) -> None:
        self._table.close()


def _is_image(kind: Any) -> bool:
    """Whether an Arrow type is bytes, or `datasets`' struct of bytes and path."""
    from pyarrow import types

    if types.is_struct(kind):
        names = {kind.field(index).name for index in range(kind.num_fields)}
        return bool(names & {"bytes", "path"})
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def _is_text(kind: Any) -> bool:
    """Whether an Arrow type is text, of whatever layout."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _type_name(kind: Any) -> str:
    """A type on one line, and not too long a one."""
    text = str(kind)
    return text if len(text) < 60 else f"{text[:57]}..."


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
