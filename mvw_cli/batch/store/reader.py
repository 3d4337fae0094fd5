"""A log read from start to end, whatever has happened to the file, and repaired.

A power cut can leave a last line that is cut, or runs of NUL bytes where data never reached the
disk.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from mvw_cli.batch.store.fingerprint import sidecar_path
from mvw_cli.batch.store.jsonl import JsonlFile
from mvw_cli.batch.store.record import SCHEMA_VERSION
from mvw_cli.errors import UsageProblem
from mvw_cli.text import plural

Record = dict[str, Any]

_PREFIX = b'{"schema_version":'
"""How the line of a record starts. Within a record the quotes are escaped, so that it occurs
nowhere else."""
_PIECE = 16 * 1024 * 1024
"""Lines are read in pieces of at most this many bytes. No record is so long; damage may be."""


class LogReader:
    """The records of a log. What is damaged is counted by the iteration that comes upon it."""

    def __init__(
        self, path: Path, name: str, *, put_aside: Callable[[bytes], object] | None = None
    ) -> None:
        """Take note of what to read.

        Args:
            name: of the file, for messages.
            put_aside: gets what is damaged, the last line apart.
        """
        self.path, self.name = path, name
        self._put_aside = put_aside
        self.junk = 0
        """Lines that hold something else than a record, the last one apart."""
        self.cut_at: int | None = None
        """Offset of the last line, where that has been cut."""
        self.lacks_end = False
        """Whether the last record is whole, but for the end of its line."""

    def __iter__(self) -> Iterator[tuple[Record, bytes]]:
        """Yield each record, and its line.

        Raises:
            UsageProblem: the file can't be read, or is of something else.
        """
        self.junk, self.cut_at, self.lacks_end = 0, None, False
        number = start = 0
        found = inside = False
        for piece in self._pieces():
            number += not inside
            inside = not piece.endswith(b"\n")
            is_last = inside and len(piece) < _PIECE
            record, line, junk = _split(piece)
            if record is not None:
                self._check(record, number)
                found = True
            self.lacks_end = is_last and record is not None
            if junk and is_last and record is None:
                self.cut_at = start
            elif junk:
                self.junk += 1
                if self._put_aside is not None:
                    self._put_aside(junk)
            if record is not None:
                yield record, line
            start += len(piece)
        if not found and (self.junk or self.cut_at is not None):
            self._check_start()

    def _pieces(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                while piece := file.readline(_PIECE):
                    yield piece
        except OSError as error:
            raise cannot_read(self.name, error.strerror or str(error)) from None

    def _check_start(self) -> None:
        """Tell a log whose first record was cut from a file of something else."""
        with self.path.open("rb") as file:
            head = file.read(100)
        is_cut = head.startswith(_PREFIX) or _PREFIX.startswith(head)
        if not is_cut and not sidecar_path(self.path).exists():
            raise not_a_log(self.name, "it holds no record")

    def _check(self, record: Record, number: int) -> None:
        version = record.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            known = f"this mvw knows {SCHEMA_VERSION}"
            cause = f"line {number} has schema_version {version}, and {known}"
            raise not_a_log(self.name, cause, "pip install --upgrade mvw")
        texts = all(isinstance(record.get(key), str) for key in ("id", "run", "question"))
        ok = record.get("status") == "ok" and isinstance(record.get("key"), str)
        failed = record.get("status") == "failed" and isinstance(record.get("key"), str | None)
        if version != SCHEMA_VERSION or not texts or not (ok or failed):
            raise not_a_log(self.name, f"line {number} is JSON of something else")


def repair(file: JsonlFile, read: LogReader) -> list[str]:
    """Take out of a log what is damaged; return what was done, one line each.

    Damage in the middle goes to `<log>.damaged`, what is left of a last line goes away.

    Args:
        read: has read the file to its end.

    Raises:
        OSError: the disk is full, or worse; the log is as it was.
    """
    told = []
    if read.junk:
        file.rewrite(whole_lines(read.path, read.name))
        lines = plural(read.junk, "damaged line")
        told.append(f"{read.name}: {lines} moved to {read.name}.damaged")
    elif read.cut_at is not None:
        file.truncate(read.cut_at)
    elif read.lacks_end:
        file.append(b"\n")
    if read.cut_at is not None:
        told.append(f"{read.name}: the last line was cut, and has been taken off")
    return told


def whole_lines(
    path: Path, name: str, keep: Callable[[Record], bool] = lambda record: True
) -> Iterator[bytes]:
    """Yield the lines of records that are to be kept; damage goes to `<log>.damaged`."""

    def put_aside(junk: bytes) -> None:
        with path.with_name(f"{path.name}.damaged").open("ab") as file:
            file.write(junk if junk.endswith(b"\n") else junk + b"\n")
            file.flush()
            os.fsync(file.fileno())

    for record, line in LogReader(path, name, put_aside=put_aside):
        if keep(record):
            yield line


def cannot_read(name: str, cause: str) -> UsageProblem:
    """Return the error for a log that can't be read."""
    folder = shlex.quote(os.path.dirname(name) or ".")
    return UsageProblem(f"Cannot read {name}", cause=cause, hint=f"ls -l {folder}")


def not_a_log(name: str, cause: str, hint: str | None = None) -> UsageProblem:
    """Return the error for a file that is not ours to read or go on with."""
    hint = hint or f"head -c 300 {shlex.quote(name)}"
    return UsageProblem(f"{name} is not a log of records", cause=cause, hint=hint)


def _split(piece: bytes) -> tuple[Record | None, bytes, bytes]:
    """Return the record of a line, if any, its bytes, and what else is in the line."""
    body = piece.strip()
    if not body:
        return None, b"", b""
    record = _parse(body)
    if record is not None:
        return record, body + b"\n", b""
    # A record whose line starts with what was left of another, or with NUL bytes.
    cut = piece.rfind(_PREFIX, 1)
    record = _parse(piece[cut:]) if cut > 0 else None
    if record is not None:
        return record, piece[cut:].strip() + b"\n", piece[:cut]
    return None, b"", piece


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


_decode = json.JSONDecoder(parse_constant=_no_number).decode


def _parse(body: bytes) -> Record | None:
    """Read a JSON object; None for whatever is none."""
    if not body.startswith(b"{"):
        return None
    try:
        value = _decode(body.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
