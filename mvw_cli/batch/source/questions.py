"""Files of questions: JSONL or CSV, one question about an image (or several images) per line.

Whether the images exist is not looked at; that is found out when they are read.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.source.folder import join, suffix
from mvw_cli.batch.source.remote import is_address, open_address, said
from mvw_cli.batch.store.scratch import scratch, to_bytes
from mvw_cli.errors import MvwError, UsageProblem

if TYPE_CHECKING:
    from mvw_cli.batch.source.sources import Source

_SCHEMA = """
CREATE TABLE id (id BLOB PRIMARY KEY, line INTEGER) WITHOUT ROWID;
CREATE TABLE image (path BLOB PRIMARY KEY, times INTEGER) WITHOUT ROWID;
"""
_KEYS = ("image", "question", "id", "answer")


@dataclass(frozen=True, slots=True)
class _Line:
    file: str
    number: int
    values: Mapping[str, Any]

    def wrong(self, cause: str) -> UsageProblem:
        return _wrong(self.file, self.number, cause)


def list_questions(source: Source) -> Iterator[Item]:
    """Yield the items of a file of questions, in its order.

    Raises:
        UsageProblem: the file does not exist, or a line is not what it should be.
    """
    file = source.questions or ""
    folder = _folder(source, file)
    globs, listed = source.globs, False
    ids = scratch(_SCHEMA)
    try:
        for line in _lines(file):
            listed = True
            paths = _paths(line)
            if not all(map(globs.let_through, paths)):
                continue
            yield Item(
                _id(line, paths, ids),
                tuple(ImageRef(_below(folder, path)) for path in paths),
                _question(line, source),
                text_of(line.values.get("answer")),
            )
    finally:
        ids.close()
    if not listed:
        raise UsageProblem(
            f"There is no question in {file}", cause="it is empty", hint="mvw batch --help"
        )


def text_of(value: object) -> str | None:
    """An id or answer as text: JSON of what is neither text nor null."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _folder(source: Source, file: str) -> str:
    """Where relative paths start."""
    from mvw_cli.batch.source.sources import is_folder

    if len(source.paths) > 1:
        raise UsageProblem(
            "--questions goes with one folder at most",
            cause=f"given are {', '.join(source.paths)}",
            hint=f"mvw batch {shlex.quote(source.paths[0])} --questions {shlex.quote(file)}",
        )
    if source.paths and source.paths[0] != "-" and is_folder(source.paths[0], source):
        return source.paths[0]
    return file.rpartition("/")[0] if is_address(file) else os.path.dirname(file)


def _below(folder: str, path: str) -> str:
    return path if is_address(path) or os.path.isabs(path) else join(folder, path)


def _lines(file: str) -> Iterator[_Line]:
    """Take the file apart; what is no UTF-8 survives, since paths need not be."""
    with _open(file) as binary:
        text = io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline="")
        if suffix(file) == ".csv":
            yield from _csv(file, text)
        else:
            yield from _jsonl(file, text)


def _open(file: str) -> IO[bytes]:
    if is_address(file):
        try:
            return open_address(file)
        except MvwError:
            raise
        except Exception as error:  # every package behind a protocol has its own
            cause = said(error)
    elif os.path.isdir(file):
        cause = "it is a folder"
    else:
        try:
            return open(file, "rb")
        except (OSError, ValueError) as error:
            cause = getattr(error, "strerror", None) or said(error)
    folder = "" if is_address(file) else os.path.dirname(file)
    hint = f"ls {shlex.quote(folder or '.')}"
    raise UsageProblem(f"Cannot read the questions in {file}", cause=cause, hint=hint)


def _jsonl(file: str, text: io.TextIOWrapper) -> Iterator[_Line]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise _wrong(file, number, f"it is no JSON: {error}") from None
        except RecursionError:
            raise _wrong(file, number, "it is no JSON of ours: nested too deeply") from None
        if not isinstance(values, dict):
            raise _wrong(file, number, "it is JSON, but no object with image and question")
        yield _Line(file, number, values)


def _csv(file: str, text: io.TextIOWrapper) -> Iterator[_Line]:
    reader = csv.DictReader(text, strict=True)
    try:
        if "image" not in (reader.fieldnames or ()):
            names = ", ".join(reader.fieldnames or ()) or "none"
            raise _wrong(file, 1, f"there is no column image; its columns are: {names}")
        for row in reader:
            # An empty cell is how CSV says that there is nothing.
            yield _Line(file, reader.line_num, {key: row.get(key) or None for key in _KEYS})
    except csv.Error as error:
        raise _wrong(file, reader.line_num, f"it is no CSV: {error}") from None


def _paths(line: _Line) -> list[str]:
    image = line.values.get("image")
    listed = image if isinstance(image, list) else [image]
    paths = [path for path in listed if isinstance(path, str) and path]
    if not paths or len(paths) < len(listed):
        raise line.wrong("it lacks image, a path or a list of paths")
    return paths


def _question(line: _Line, source: Source) -> str:
    question = line.values.get("question")
    if question is None:
        if source.question is None:
            raise line.wrong("it lacks question, and there is no other question to ask")
        return source.question
    if not isinstance(question, str) or not question.strip():
        raise line.wrong("its question is empty or no text")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise line.wrong("its question is not UTF-8") from None
    return question


def _id(line: _Line, paths: list[str], ids: sqlite3.Connection) -> str:
    """The id that the line gives, else its image, with a number from its second question on."""
    given = line.values.get("id")
    if given is not None:
        id = str(text_of(given))
    else:
        id = "+".join(paths)
        (times,) = ids.execute(
            "INSERT INTO image VALUES (?, 1)"
            " ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times",
            (to_bytes(id),),
        ).fetchone()
        id = id if times == 1 else f"{id}#{times}"
    try:
        ids.execute("INSERT INTO id VALUES (?, ?)", (to_bytes(id), line.number))
    except sqlite3.IntegrityError:
        query = "SELECT line FROM id WHERE id = ?"
        (first,) = ids.execute(query, (to_bytes(id),)).fetchone()
        raise line.wrong(f"its id {id} is that of line {first}") from None
    return id


def _wrong(file: str, number: int, cause: str) -> UsageProblem:
    return UsageProblem(
        f"Line {number} of {file} is no question about an image",
        cause=cause,
        hint=f"sed -n {number}p {shlex.quote(file)}",
    )
