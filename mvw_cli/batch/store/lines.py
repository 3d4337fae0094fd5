"""Reading a log of records line by line, whatever has happened to the file.

A power cut can leave a last line that is cut, or runs of NUL bytes where data never reached the
disk. What is a whole record is told from what is not; what to do about it is the caller's matter.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from mvw_cli.batch.store.record import SCHEMA_VERSION
from mvw_cli.errors import UsageProblem

PREFIX = b'{"schema_version":'
"""How the line of a record starts. Within a record the quotes are escaped, so that it occurs
nowhere else."""
_PIECE = 16 * 1024 * 1024
"""Lines are read in pieces of at most this many bytes. No record is so long; damage may be."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line, or a piece of one that is too long to be a record."""

    start: int
    """Offset of its first byte."""
    closed: bool
    """Whether more was written after it, its end at least: only the last line can lack it."""
    record: dict[str, Any] | None
    text: bytes
    """The line of the record, its end included; empty without one."""
    junk: bytes
    """What precedes the record, or all of it where there is none."""


def read_lines(file: BinaryIO, name: str) -> Iterator[Line]:
    """Read a log from its start; blank lines are passed over.

    Args:
        name: of the file, for messages.

    Raises:
        UsageProblem: a line is sound JSON and yet no record.
    """
    start = number = 0
    inside = False
    while piece := file.readline(_PIECE):
        number += not inside
        inside = not piece.endswith(b"\n")
        closed = not inside or len(piece) == _PIECE
        record, text, junk = _split(piece, name, number)
        if record is not None or junk:
            yield Line(start, closed, record, text, junk)
        start += len(piece)


def starts_like_a_log(head: bytes) -> bool:
    """Say whether a file's first bytes may be those of a record, however short it was cut."""
    return head.startswith(PREFIX) or PREFIX.startswith(head)


def not_a_log(name: str, cause: str, hint: str | None = None) -> UsageProblem:
    """Say why a file is not ours to read or go on with."""
    return UsageProblem(
        f"{name} is not a log of records",
        cause=cause,
        hint=hint or f"head -c 300 {shlex.quote(name)}",
    )


def _split(piece: bytes, name: str, number: int) -> tuple[dict[str, Any] | None, bytes, bytes]:
    body = piece.strip()
    if not body:
        return None, b"", b""
    record = _parse(body)
    if record is not None:
        _check(record, name, number)
        return record, body + b"\n", b""
    # A record whose line starts with what was left of another, or with NUL bytes.
    cut = piece.rfind(PREFIX, 1)
    record = _parse(piece[cut:]) if cut > 0 else None
    if record is not None:
        _check(record, name, number)
        return record, piece[cut:].strip() + b"\n", piece[:cut]
    return None, b"", piece


def _parse(body: bytes) -> dict[str, Any] | None:
    """Read a JSON object; None for whatever is none."""
    if not body.startswith(b"{"):
        return None
    try:
        value = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _check(record: dict[str, Any], name: str, number: int) -> None:
    version = record.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        cause = f"line {number} has schema_version {version}, and this mvw knows {SCHEMA_VERSION}"
        raise not_a_log(name, cause, "pip install --upgrade mvw")
    texts = all(isinstance(record.get(key), str) for key in ("id", "run", "question"))
    ok = record.get("status") == "ok" and isinstance(record.get("key"), str)
    failed = record.get("status") == "failed" and isinstance(record.get("key"), str | None)
    if version != SCHEMA_VERSION or not texts or not (ok or failed):
        raise not_a_log(name, f"line {number} is JSON of something else")
