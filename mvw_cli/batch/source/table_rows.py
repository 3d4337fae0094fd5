"""Rows of a table as items: which column holds what, and how a row is called.

Of the images only paths are read here; their bytes are left to `cells.py`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.source.folder import join
from mvw_cli.batch.source.questions import text_of
from mvw_cli.batch.source.remote import is_address, said
from mvw_cli.batch.source.table import Table, is_image, is_text, said_type
from mvw_cli.errors import MvwError, UsageProblem

if TYPE_CHECKING:
    from mvw_cli.batch.source.sources import Source


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
            f"Cannot read the table {path}", cause=said(error), hint=f"file {shlex.quote(path)}"
        ) from None


def no_pyarrow(path: str) -> UsageProblem:
    """Say what is missing to read a table."""
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
            hint=source.command(path),
        )
    id = text_of(row[columns.id]) if columns.id else None
    reference = text_of(row[columns.answer]) if columns.answer else None
    return Item(f"{name}#{number}" if id is None else id, (image,), question, reference)


def _choose(table: Table, source: Source) -> _Columns:
    """Find the columns: those that were named, else those with the usual names."""
    image = _column(table, source, "image", source.image_column)
    if image is None:
        raise _no_images(table, source)
    kind = table.schema.field(image).type
    if not (is_text(kind) or is_image(kind)):
        raise UsageProblem(
            f"The column {image} of {table.path} holds no images",
            cause=f"it holds {said_type(kind)}, not bytes, paths or both",
            hint=source.command(table.path, "--image-column", "NAME"),
        )
    question = _column(table, source, "question", source.question_column)
    if question is not None and not is_text(table.schema.field(question).type):
        raise UsageProblem(
            f"The column {question} of {table.path} holds no questions",
            cause=f"it holds {said_type(table.schema.field(question).type)}, not text",
            hint=source.command(table.path, "--question-column", "NAME"),
        )
    return _Columns(
        image,
        is_text(kind),
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
            hint=source.command(table.path),
        )
    return named


def _no_images(table: Table, source: Source) -> UsageProblem:
    fields = [table.schema.field(name) for name in table.schema.names]
    likely = [field.name for field in fields if is_image(field.type)] or ["NAME"]
    return UsageProblem(
        f"There is no column image in {table.path}",
        cause=f"its columns are: {', '.join(table.schema.names) or 'none'}",
        hint=source.command(table.path, "--image-column", likely[0]),
    )
