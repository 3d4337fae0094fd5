"""Tables: Parquet, and Arrow as `datasets` writes it with save_to_disk, read from front to back.

pyarrow is imported when a table is opened. What a column is good for is known elsewhere:
`table_rows.py` lists the small ones, `cells.py` reads images.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import IO, Any, Self

from mvw_cli.batch.source.folder import suffix
from mvw_cli.batch.source.remote import is_address, open_address

_ROWS = 1024  # of small columns at a time
_BUFFER = 1 << 20  # bytes; without it pyarrow holds a column's whole row group


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


def is_image(kind: Any) -> bool:
    """Say whether an Arrow type is bytes, or `datasets`' struct of bytes and path."""
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


def is_text(kind: Any) -> bool:
    """Say whether an Arrow type is text, of whatever layout."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def said_type(kind: Any) -> str:
    """A type on one line, and not too long a one."""
    text = str(kind)
    return text if len(text) < 60 else f"{text[:57]}..."


def _open(path: str) -> IO[bytes]:
    """Open through Python's own files: pyarrow's know no names that are not UTF-8."""
    if is_address(path):
        return open_address(path)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no regular file")
    return open(path, "rb")
