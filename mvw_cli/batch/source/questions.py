"""Files of questions: JSONL or CSV, one question about an image (or several images) per line.

Whether the images exist is found out when they are read.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from mvw_cli.batch.items import ImageRef, Item, as_text, is_address
from mvw_cli.batch.source.paths import Source, is_folder, join, suffix
from mvw_cli.batch.source.remote import open_address
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.text import error_line

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
    asked: Counter[str] = Counter()
    lines: dict[str, int] = {}
    for line in _lines(file):
        listed = True
        paths = _paths(line)
        if not all(map(globs.choose, paths)):
            continue
        id = as_text(line.values.get("id"))
        if id is None:  # the image, with a number from its second question on
            id = "+".join(paths)
            asked[id] += 1
            id = id if asked[id] == 1 else f"{id}#{asked[id]}"
        first = lines.setdefault(id, line.number)
        if first != line.number:
            raise line.wrong(f"its id {id} is that of line {first}")
        yield Item(
            id,
            tuple(ImageRef(_below(folder, path)) for path in paths),
            _question(line, source),
            as_text(line.values.get("answer")),
        )
    if not listed:
        raise UsageProblem(f"There is no question in {file}", cause="it is empty", hint=source.help)


def _folder(source: Source, file: str) -> str:
    """Where relative paths start."""
    if len(source.paths) > 1:
        raise UsageProblem(
            "--questions goes with one folder at most",
            cause=f"given are {', '.join(source.paths)}",
            hint=source.questions_hint(file, source.paths[0]),
        )
    if source.paths and source.paths[0] != "-" and is_folder(source.paths[0], source):
        return source.paths[0]
    return file.rpartition("/")[0] if is_address(file) else os.path.dirname(file)


def _below(folder: str, path: str) -> str:
    return path if is_address(path) or os.path.isabs(path) else join(folder, path)


def _lines(file: str) -> Iterator[_Line]:
    """Split the file; what is no UTF-8 survives, since paths need not be."""
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
            cause = error_line(error)
    elif os.path.isdir(file):
        cause = "it is a folder"
    else:
        try:
            return open(file, "rb")
        except (OSError, ValueError) as error:
            cause = getattr(error, "strerror", None) or error_line(error)
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


def _wrong(file: str, number: int, cause: str) -> UsageProblem:
    return UsageProblem(
        f"Line {number} of {file} is no question about an image",
        cause=cause,
        hint=f"sed -n {number}p {shlex.quote(file)}",
    )
