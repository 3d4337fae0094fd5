"""Tables: Parquet, and Arrow as `datasets` writes it with save_to_disk, read from front to back.

`list_rows` makes items of rows and leaves the images alone; `Cells` reads these, one by one.
pyarrow is imported when a table is opened.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from mvw_cli.batch.items import IMAGE_COLUMNS, ImageRef, Item, as_text, id_of
from mvw_cli.batch.source.paths import Source, join, open_file, suffix
from mvw_cli.batch.source.questions import question_of
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.text import error_line, holds_image

_ROWS = 1024  # of small columns at a time
_IMAGES = 16  # rows of images at a time
_BUFFER = 1 << 20  # bytes; without it pyarrow holds a column's whole row group
_OPEN = 2  # columns: an item may have images in two, and files follow one another

# How the names of Arrow's types begin.
_BYTES = ("binary", "large_binary", "fixed_size_binary")
_TEXT = (
    *("string", "large_string"),
    *("dictionary<values=string", "dictionary<values=large_string"),
)
_LISTS = ("list<", "large_list<", "fixed_size_list<")


class Table:
    """An open Parquet or Arrow file, read from the front by one thread."""

    def __init__(self, path: str) -> None:
        check_pyarrow(path, "read")
        self.path = path
        # Through Python's own files: pyarrow's know no names that are not UTF-8.
        self._file = open_file(path)
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
        self, columns: Sequence[str], size: int, *, row: int = 0
    ) -> Iterator[tuple[int, Any]]:
        """Yield record batches with the number of their first row.

        Args:
            size: rows of a batch of Parquet at most; Arrow has its own.
            row: start no later than here, as close as the format allows.
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
            rows = self._parquet.metadata.row_group(group).num_rows
            if first + rows <= row:
                first += rows
                continue
            for batch in self._parquet.iter_batches(
                size, row_groups=[group], columns=list(columns), use_threads=False
            ):
                yield first, batch
                first += batch.num_rows

    def leaf(self, column: str) -> str | None:
        """Name the part of a column of lists by which they are counted without their images.

        That is their paths; None where the images must be read.
        """
        schema: Any = self._parquet.schema if self._parquet else ()
        leaves = [schema.column(number).path for number in range(len(schema))]
        ours = (one for one in leaves if one.startswith(f"{column}."))
        return next((one for one in ours if one.endswith(".path")), None)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def list_rows(path: str, name: str, source: Source) -> Iterator[Item]:
    """Yield the rows of a table as items; `name` is what their ids begin with.

    Raises:
        UsageProblem: it is no table, or lacks a column or a question.
    """
    try:
        with closing(Table(path)) as table:
            from pyarrow.compute import list_value_length

            columns = _columns(table, source)
            kind, image = table.schema.field(columns["image"]).type, columns["image"]
            is_path, is_list = str(_element(kind)).startswith(_TEXT), _element(kind) is not kind
            # All but images, if these are more than their paths.
            read = {column for role, column in columns.items() if role != "image" or is_path}
            types = {name: table.schema.field(name).type for name in table.schema.names}
            others = {name for name, one in types.items() if source.whole and not _is_image(one)}
            read |= others - {image}
            counted = table.leaf(image) or image if is_list and not is_path else None
            size = _IMAGES if counted == image else _ROWS
            for first, batch in table.batches([*read, *filter(None, [counted])], size):
                rows = batch.select([*read]).to_pylist()
                if counted is not None:
                    lengths = list_value_length(batch.column(image)).to_pylist()
                    rows = [{**row, image: n} for row, n in zip(rows, lengths, strict=True)]
                for number, row in enumerate(rows, first):
                    values = {role: row.get(column) for role, column in columns.items()}
                    item = _item(path, name, number, values, image, source)
                    if others:
                        item = replace(item, values={key: row[key] for key in others - {image}})
                    yield item
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
    path: str, name: str, number: int, values: dict[str, Any], column: str, source: Source
) -> Item:
    """Make an item of a row's values by their roles; `column` is that of the image.

    An image's value is its path, a list of paths, or the number of images in a list.
    """
    told = values["image"]
    cells = [None] * told if isinstance(told, int) else told
    is_list = isinstance(cells, list)
    images = tuple(
        ImageRef(join(os.path.dirname(path), text))
        if text and not holds_image(text)
        else ImageRef(path, number, column, place if is_list else None)
        for place, text in enumerate((cells or [None]) if is_list else [cells])
    )
    try:
        question = question_of(values, source)
    except ValueError as error:
        what = f"Row {number} of {path} has no question"
        raise UsageProblem(what, cause=str(error), hint=source.hint(path)) from None
    id = id_of(values.get("id"))
    reference = as_text(values.get("answer"))
    return Item(f"{name}#{number}" if id is None else id, images, question, reference)


def _columns(table: Table, source: Source) -> dict[str, str]:
    """Find the columns by their roles: those that were named, else those with the usual names."""
    types = {name: table.schema.field(name).type for name in table.schema.names}
    given = {
        "image": source.image_column,
        "question": source.question_column,
        "id": source.id_column or ("index" if source.whole and "index" in types else None),
        "answer": source.answer_column,
    }
    image = next((name for name in IMAGE_COLUMNS if name in types), "image")
    names = {role: name or (image if role == "image" else role) for role, name in given.items()}
    columns = {role: name for role, name in names.items() if given[role] or name in types}
    missing = [name for name in columns.values() if name not in types]
    if missing or "image" not in columns:
        likely = [name for name, kind in types.items() if _is_image(kind)] or ["NAME"]
        hint = source.hint(table.path, *([] if missing else ["--image-column", likely[0]]))
        raise UsageProblem(
            f"There is no column {missing[0] if missing else 'image'} in {table.path}",
            cause=f"its columns are: {', '.join(types) or 'none'}",
            hint=hint,
        )
    kind = types[columns["image"]]
    if not str(_element(kind)).startswith(_TEXT) and not _is_image(kind):
        raise UsageProblem(
            f"The column {columns['image']} of {table.path} holds no images",
            cause=f"it holds {str(kind)[:60]}, not bytes, paths, both, or lists of these",
            hint=source.hint(table.path, "--image-column", "NAME"),
        )
    return columns


def _is_image(kind: Any) -> bool:
    """Whether an Arrow type is bytes, `datasets`' struct of bytes and path, or lists of these."""
    kind = _element(kind)
    if str(kind).startswith("struct<"):
        return not {"bytes", "path"}.isdisjoint(field.name for field in kind)
    return str(kind).startswith(_BYTES)


def _element(kind: Any) -> Any:
    """Return the type of a list's elements; any other type itself."""
    return kind.value_type if str(kind).startswith(_LISTS) else kind


class Cells:
    """Reads cells for one thread. Holds at most two batches and two open files."""

    def __init__(self) -> None:
        self._columns: dict[tuple[str, str], _Column] = {}

    def cell(self, path: str, row: int, column: str, place: int | None = None) -> Any:
        """Return a cell, or what stands at a place of its list, as Python's own kind of value.

        Raises:
            MvwError: there is no such row or column, or no pyarrow.
            Exception: of pyarrow or the file system, where the table cannot be read.
        """
        key = (path, column)
        # Taken out while it is read: what has failed half-way is not used again.
        reader = self._columns.pop(key, None) or _Column(path, column)
        try:
            found = reader.at(row, place)
        except BaseException:
            reader.table.close()
            raise
        self._columns[key] = reader
        if len(self._columns) > _OPEN:
            self._columns.pop(next(iter(self._columns))).table.close()
        return found

    def close(self) -> None:
        """Close the files."""
        for reader in self._columns.values():
            reader.table.close()
        self._columns.clear()


class _Column:
    def __init__(self, path: str, name: str) -> None:
        self.table = Table(path)
        self._name = name
        self._batches: Iterator[tuple[int, Any]] = iter(())
        self._first, self._cells = 0, None

    def at(self, row: int, place: int | None) -> Any:
        if self._name not in self.table.schema.names:
            raise self._changed(row, f"there is no column {self._name}")
        if self._cells is None or row < self._first:
            self._cells = None
            self._batches = self.table.batches([self._name], _IMAGES, row=row)
        while self._cells is None or row >= self._first + len(self._cells):
            self._cells = None  # freed before the next one is read
            read = next(self._batches, None)
            if read is None:
                raise self._changed(row, f"there is no row {row}")
            self._first, self._cells = read[0], read[1].column(self._name)
        cell = self._cells[row - self._first]
        if place is None:
            return cell.as_py()
        return cell[place].as_py() if cell.is_valid and place < len(cell) else None

    def _changed(self, row: int, cause: str) -> MvwError:
        image = ImageRef(self.table.path, row, self._name)
        return MvwError(f"Cannot read the image {image}", cause=f"{cause}; the table has changed")
