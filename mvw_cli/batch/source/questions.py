"""Files of questions: JSON Lines, CSV or TSV, one question about one or more images on each line.

CSV as spreadsheets write it: separated by commas, semicolons or tabs, with a byte order mark, and
with rows of empty cells. Images are paths, or lie in the line itself as data URLs or base64.
"""

from __future__ import annotations

import ast
import codecs
import csv
import io
import json
import os
import shlex
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, suppress
from itertools import chain
from typing import IO, Any

from mvw_cli.batch.items import (
    IMAGE_COLUMNS,
    ImageRef,
    Item,
    as_text,
    embedded_image,
    id_of,
    is_address,
)
from mvw_cli.batch.source.paths import Source, is_folder, join, open_file, suffix
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.images.problems import FILE_LIMIT
from mvw_cli.text import error_line, holds_image, is_unicode, plural

SUFFIXES = (".jsonl", ".csv", ".tsv")
LONGEST_REFERENCE = 64
"""Characters up to which VLMEvalKit takes the cell of an image for the index of another row."""
_SEPARATORS = (",", ";", "\t")
_SHOWN = 40
"""Characters of foreign text in a message: it may be an image."""

Line = tuple[int, Mapping[str, Any]]
"""The number of a line, and its values."""


def list_questions(file: str, source: Source) -> Iterator[Item]:
    """List the items of a file in its order; whether their images exist is found out later.

    Raises:
        UsageProblem: it can't be read, or a line is no question about an image.
    """
    folder = _start_of_paths(file, source)
    number = 0
    asked: Counter[str] = Counter()
    for number, values in _lines(file):
        try:
            written = _written(values)
            if not written and not source.whole:
                raise ValueError("it lacks image, a path or a list of paths")
            held = [_is_held(text, values, file, source) for text in written]
            paths = [text for text, inside in zip(written, held, strict=True) if not inside]
            if not all(map(source.chooses, paths)):
                continue
            first, other = ("index", "id") if source.whole else ("id", "index")
            id = id_of(values.get(first, values.get(other)))
            if id is None and (not written or paths != written):  # no id ever holds an image
                id = f"{os.path.basename(file)}#{number}"
            elif id is None:  # the image, with a number from its second question on
                id = "+".join(paths)
                asked[id] += 1
                id = id if asked[id] == 1 else f"{id}#{asked[id]}"
            images = tuple(
                ImageRef(file, number, "image", None if len(written) == 1 else place)
                if inside
                else ImageRef(join(folder, text))
                for place, (text, inside) in enumerate(zip(written, held, strict=True))
            )
            question, reference = question_of(values, source), as_text(values.get("answer"))
        except (ValueError, RecursionError) as error:
            raise _bad_line(file, number, str(error)) from None
        others = {key: value for key, value in values.items() if not _is_long(key, value)}
        yield Item(id, images, question, reference, others if source.whole else {})
    if not number:
        raise UsageProblem(f"There is no question in {file}", cause="it is empty", hint=source.help)


class Lines:
    """Reads the images that lie in lines, for one thread: from front to back, but for what has been
    passed already, which it knows the place of.
    """

    def __init__(self) -> None:
        self._file = ""
        self._line: Line = (0, {})
        self._rest: Iterator[Line] = iter(())
        self._places: dict[int, int] = {}
        self._again: Line = (0, {})

    def image(self, image: ImageRef) -> bytes:
        """Return the bytes of an image that a line holds.

        Raises:
            ValueError: it is not there any more, or no base64.
        """
        row = image.row or 0
        if self._file != image.path:
            self._file, self._places = image.path, {}
            self._line = self._again = (0, {})
            self._rest = _lines(image.path, self._places)
        while self._line[0] < row:
            self._line = next(self._rest, (row + 1, {}))
        line = self._line
        if row < line[0] and row in self._places:
            if self._again[0] != row:
                with closing(_lines(image.path, start=(row, self._places[row]))) as rest:
                    self._again = next(rest, (0, {}))
            line = self._again
        written = _written(line[1])
        place = image.place or 0
        if line[0] != row or place >= len(written):
            raise ValueError("the line that held it has changed")
        return embedded_image(written[place])


def _written(values: Mapping[str, Any]) -> list[str]:
    """Return what stands under the key of the images; empty where that is no text or list of it.

    A cell may hold a list as Python writes it.
    """
    image = next((values[key] for key in IMAGE_COLUMNS if values.get(key)), None)
    if isinstance(image, str) and image[0] == "[" and image[-1] == "]":
        with suppress(ValueError, SyntaxError, MemoryError):
            image = ast.literal_eval(image)
    listed: list[Any] = image if isinstance(image, list) else [image]
    return listed if all(isinstance(one, str) and one for one in listed) else []


def _is_held(text: str, values: Mapping[str, Any], file: str, source: Source) -> bool:
    """Whether a line holds the image itself; in the harness's tables all that is long does."""
    if source.whole and suffix(file) != ".jsonl" and values.get("image"):
        return len(text) > LONGEST_REFERENCE
    return holds_image(text)


def _is_long(key: str, value: Any) -> bool:
    """Whether a value is that of images, rather than a short reference to one."""
    return key in IMAGE_COLUMNS and len(str(value)) > LONGEST_REFERENCE


def question_of(values: Mapping[str, Any], source: Source) -> str:
    """Return what is asked in a line or row; ValueError where that is nothing or no text."""
    question = values.get("question")
    if question is None:
        question = source.question
    if question is None:
        raise ValueError("it lacks question, and there is no other question to ask")
    if not isinstance(question, str) or not question.strip():
        raise ValueError("its question is empty or no text")
    if not is_unicode(question):
        raise ValueError("its question is not UTF-8")
    return question


def _start_of_paths(file: str, source: Source) -> str:
    """The folder where relative paths start."""
    if len(source.paths) > 1:
        raise UsageProblem(
            "--questions goes with one folder at most",
            cause=f"given are {', '.join(source.paths)}",
            hint=source.questions_hint(file, source.paths[0]),
        )
    if source.paths and source.paths[0] != "-" and is_folder(source.paths[0], source):
        return source.paths[0]
    return os.path.dirname(file)


# -- lines of each format --------------------------------------------------------------------------


def _lines(
    file: str, places: dict[int, int] | None = None, start: tuple[int, int] | None = None
) -> Generator[Line]:
    """Yield the number and the values of each line.

    Args:
        places: where to note the place of each line, by its number.
        start: number and place of the line to begin with.
    """
    try:
        stream = open_file(file)
        # What is no UTF-8 survives, since paths need not be.
        with io.TextIOWrapper(stream, _encoding(stream), "surrogateescape", newline="") as text:
            read = _csv if suffix(file) in (".csv", ".tsv") else _jsonl
            for number, place, values in read(file, text, start):
                if places is not None:
                    places[number] = place
                yield number, values
    except MvwError:
        raise
    except Exception as error:  # the system's, and those of every package behind a protocol
        folder = "." if is_address(file) else os.path.dirname(file) or "."
        raise UsageProblem(
            f"Cannot read the questions in {file}",
            cause=getattr(error, "strerror", None) or error_line(error),
            hint=f"ls {shlex.quote(folder)}",
        ) from None


def _encoding(stream: IO[bytes]) -> str:
    """Tell UTF-16, as Excel's "Unicode text" is, by its byte order mark."""
    mark = stream.read(2)
    stream.seek(0)
    return "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _jsonl(
    file: str, text: io.TextIOWrapper, start: tuple[int, int] | None
) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    number = 0
    if start is not None:
        number = start[0] - 1
        text.seek(start[1])
    while True:
        place, line, number = text.tell(), text.readline(), number + 1
        if not line:
            return
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad_line(file, number, f"it is no JSON: {error}") from None
        if not isinstance(values, dict):
            raise _bad_line(file, number, "it is JSON, but no object with image and question")
        yield number, place, values


def _csv(
    file: str, text: io.TextIOWrapper, start: tuple[int, int] | None
) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    csv.field_size_limit(FILE_LIMIT)  # the default is shorter than most images
    first = text.readline()
    separator, names = _header(file, first)
    lines: Iterator[str] = iter(text.readline, "")
    if start is not None:
        text.seek(start[1])
    else:
        lines = chain([first], lines)
    rows = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    before = None
    try:
        while True:
            place = text.tell()  # a reader takes no line before it needs it
            cells = next(rows, None)
            if cells is None:
                return
            if before is None:
                before = 0 if start is None else start[0] - rows.line_num
            number, written = before + rows.line_num, sum(1 for cell in cells if cell.strip())
            if number == 1 or not written:  # spreadsheets leave empty rows where some were deleted
                continue
            if any(cell.strip() for cell in cells[len(names) :]):
                cause = (
                    f"it has {plural(len(cells), 'cell')}, the header {len(names)}: "
                    f"a text with {separator!r} in it stands in quotes"
                )
                raise _bad_line(file, number, cause)
            # An empty cell is how CSV says that there is nothing.
            row = {name: cell or None for name, cell in zip(names, cells, strict=False)}
            yield number, place, row
    except csv.Error as error:
        raise _bad_line(file, rows.line_num, f"it is no CSV: {error}") from None


def _header(file: str, line: str) -> tuple[str, list[str]]:
    """Find the separator that makes a column of images, and the names of the columns."""
    split = {}
    for separator in _SEPARATORS:
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
        split[separator] = [cell.strip() for cell in cells]
    for separator, names in split.items():
        if not set(IMAGE_COLUMNS).isdisjoint(names):
            twice = [name for name, count in Counter(filter(None, names)).items() if count > 1]
            if twice:
                raise _bad_line(file, 1, f"there are two columns {twice[0][:_SHOWN]}")
            return separator, names
    most = max(split.values(), key=len)
    found = ", ".join(name[:_SHOWN] for name in most[:20] if name) or "none"
    raise _bad_line(file, 1, f"there is no column image; its columns are: {found}")


def _bad_line(file: str, number: int, cause: str) -> UsageProblem:
    return UsageProblem(
        f"Line {number} of {file} is no question about an image",
        cause=cause,
        hint=f"sed -n {number}p {shlex.quote(file)} | cut -c1-300",
    )
