"""Single cells of tables, asked for roughly in the order of their rows.

A table can only be read from front to back, a batch at a time; the batch that was read last is
kept, so that a run over all rows reads each batch once. What is in a cell is not looked at.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from mvw_cli.batch.source.table import Table

_BATCH = 16 << 20  # bytes of images at a time
_OPEN = 2  # columns: an item may have images in two, and files follow one another


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
