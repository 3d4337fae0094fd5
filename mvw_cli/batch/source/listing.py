"""The items that a command line asks for: one folder, table, list or file of questions at a time.

Nothing is opened here that holds an image. Items come as a stream, in the same order each time.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from io import BufferedIOBase
from typing import cast

from mvw_cli.batch.items import ImageRef, Item, is_address
from mvw_cli.batch.source.paths import (
    IMAGE_SUFFIXES,
    TABLE_SUFFIXES,
    Source,
    holds_any,
    identity,
    is_folder,
    join,
    suffix,
    walk,
)
from mvw_cli.batch.source.questions import list_questions
from mvw_cli.batch.source.table import list_rows
from mvw_cli.errors import UsageProblem


def list_items(source: Source) -> Iterator[Item]:
    """Yield what is asked.

    Ids: the path relative to the folder (below the folder as given, where there are several
    paths); a path as given; the questions file's or the table's id, else `scene.png#2` for the
    second question about an image and `scenes.parquet#17` for a row, counted from 0.

    Raises:
        MvwError: something does not exist, cannot be read, holds no image, or is no such file as
            it should be. Images themselves are not opened.
    """
    if source.questions is not None:
        yield from list_questions(source)
        return
    if not source.paths:
        raise UsageProblem(
            "There is nothing to ask about",
            cause="no folder, image or table is named",
            hint=source.hint("./images"),
        )
    for path in source.paths:  # before the first is listed, and asked about
        if path != "-" and not is_address(path):
            is_folder(path, source)
    # A file that is named is not listed a second time with its folder.
    named = {os.path.realpath(path) for path in source.paths if os.path.isfile(path)}
    visited: set[object] = set()
    for path in source.paths:
        if path == "-":
            yield from _from_stdin(source)
        elif is_folder(path, source):
            yield from _from_folder(path, source, named, visited)
        else:
            yield from _from_file(path, source)


def _from_folder(
    root: str, source: Source, named: set[str], visited: set[object]
) -> Iterator[Item]:
    """List the images of a folder, or the rows of its tables where it is a dataset."""
    if identity(root) in visited:
        return  # it lies in a folder that was listed before
    tables = _holds_tables(root, source)
    # A repository of datasets keeps its tables in `data/` or in a folder for each configuration.
    recursive = source.recursive or (tables and not holds_any(root, TABLE_SUFFIXES))
    globs, listed, excluded = source.globs, False, 0
    others: Counter[str] = Counter()
    names = {os.path.basename(path) for path in named}

    def wanted(path: str) -> bool:
        nonlocal excluded
        ending = suffix(path)
        # datasets keeps what its `map` computed beside the data, as cache-….arrow
        cached = tables and path.rpartition("/")[2].startswith("cache-")
        if cached or ending not in (TABLE_SUFFIXES if tables else IMAGE_SUFFIXES):
            others[ending] += 1
            return False
        chosen = globs.choose(path)
        excluded += not chosen
        return chosen

    for path in walk(root, wanted, recursive=recursive, enters=globs.enter, visited=visited):
        listed = True
        where = join(root, path)
        name = path if len(source.paths) == 1 else where
        if tables:
            yield from list_rows(where, name, source)
        elif os.path.basename(path) not in names or os.path.realpath(where) not in named:
            yield Item(name, (ImageRef(where),), _question(source))
    if not listed:
        raise _nothing_in(root, source, "table" if tables else "image", others, excluded)


def _holds_tables(root: str, source: Source) -> bool:
    """Tell a dataset from a folder of images by what comes first, images before tables."""
    if holds_any(root, IMAGE_SUFFIXES):
        return False
    if holds_any(root, TABLE_SUFFIXES):
        return True
    either = IMAGE_SUFFIXES | TABLE_SUFFIXES
    below = walk(
        root, lambda path: suffix(path) in either, recursive=True, enters=source.globs.enter
    )
    first = next(below, "")
    return suffix(first) in TABLE_SUFFIXES and not holds_any(
        join(root, os.path.dirname(first)), IMAGE_SUFFIXES
    )


def _nothing_in(
    root: str, source: Source, kind: str, others: Counter[str], excluded: int
) -> UsageProblem:
    """Explain why a folder has no item, and where there are some."""
    kinds = ", ".join(f"{n} {end or 'without ending'}" for end, n in others.most_common(3))
    cause = f"other files in it: {others.total()}" + (f" ({kinds})" if kinds else "")
    hint = f"ls {shlex.quote(root)}"
    if excluded:
        cause, hint = f"--include and --exclude leave out all of its {excluded}", source.hint(root)
    elif not source.recursive and _images_below(root, source):
        cause += "; there are images in its subfolders"
        if source.command == ("mvw", "batch"):  # the others have no such option
            hint = source.hint(root, "--recursive")
    return UsageProblem(f"There is no {kind} in {root}", cause=cause, hint=hint)


def _images_below(root: str, source: Source) -> bool:
    def wanted(path: str) -> bool:
        return suffix(path) in IMAGE_SUFFIXES and source.globs.choose(path)

    return any(walk(root, wanted, recursive=True, enters=source.globs.enter))


def _from_file(path: str, source: Source) -> Iterator[Item]:
    if not source.globs.choose(path):
        return
    if suffix(path) in TABLE_SUFFIXES:
        name = path.rpartition("/")[2] if len(source.paths) == 1 else path
        yield from list_rows(path, name, source)
    elif suffix(path) in (".jsonl", ".csv"):
        raise UsageProblem(
            f"{path} is no image",
            cause="a file of questions goes with --questions",
            hint=source.questions_hint(path),
        )
    else:
        yield Item(path, (ImageRef(path),), _question(source))


def _from_stdin(source: Source) -> Iterator[Item]:
    if sys.stdin is None or sys.stdin.isatty():
        raise _nothing_piped(source, "it is a terminal" if sys.stdin else "it is closed")
    listed, globs = False, source.globs
    for line in _lines(cast(BufferedIOBase, sys.stdin.buffer)):
        path = os.fsdecode(line)
        listed = True
        if globs.choose(path):
            yield Item(path, (ImageRef(path),), _question(source))
    if not listed:
        raise _nothing_piped(source, "it is empty")


def _nothing_piped(source: Source, cause: str) -> UsageProblem:
    return UsageProblem(
        "There is no path on standard input", cause=cause, hint=source.hint("./images")
    )


def _lines(stream: BufferedIOBase) -> Iterator[bytes]:
    """Split paths at NUL where the first one ends with it (find -print0), else at newlines."""
    rest, separator = b"", b""
    while data := stream.read1(1 << 16):
        rest += data
        if not separator:
            separator = b"\0" if b"\0" in rest else b"\n" if b"\n" in rest else b""
        if separator:
            *whole, rest = rest.split(separator)
            yield from (path for one in whole if (path := _path(one, separator)))
    if path := _path(rest, separator):
        yield path


def _path(line: bytes, separator: bytes) -> bytes:
    return line if separator == b"\0" else line.removesuffix(b"\r")


def _question(source: Source) -> str:
    if source.question is None:
        raise UsageProblem(
            "There is no question",
            cause="neither the command line nor the profile asks one",
            hint=source.hint(source.paths[0] if source.paths else "./images"),
        )
    return source.question
