"""The items that a command line asks for: folders, tables, lists, files of questions.

Nothing is opened here that holds an image. Items come as a stream, in the same order each time.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.source.paths import (
    IMAGE_SUFFIXES,
    TABLE_SUFFIXES,
    Source,
    is_folder,
    join,
    suffix,
    walk,
)
from mvw_cli.batch.source.questions import SUFFIXES, list_questions
from mvw_cli.batch.source.table import list_rows
from mvw_cli.errors import UsageProblem
from mvw_cli.text import check_paths


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
        yield from list_questions(source.questions, source)
        return
    if not source.paths:
        raise UsageProblem(
            "There is nothing to ask about",
            cause="no folder, image or table is named",
            hint=source.hint("./images"),
        )
    # All are looked up before the first is listed, so that a mistyped path is told first.
    are_folders = [path != "-" and is_folder(path, source) for path in source.paths]
    for path, is_root in zip(source.paths, are_folders, strict=True):
        if path == "-":
            yield from _from_stdin(source)
        elif is_root:
            yield from _from_folder(path, source)
        else:
            yield from _from_file(path, source)


def _from_folder(root: str, source: Source) -> Iterator[Item]:
    """List the images of a folder, or the rows of its tables where it is a dataset."""
    tables = holds_tables(root, source)
    suffixes = TABLE_SUFFIXES if tables else IMAGE_SUFFIXES
    # A dataset keeps its tables in `data/` or in a folder for each configuration or split.
    recursive = source.recursive or tables
    listed = excluded = 0
    others: Counter[str] = Counter()
    for path in chain.from_iterable(walk(root, recursive=recursive, enters=source.enters)):
        # datasets keeps what its `map` computed beside the data, as cache-….arrow
        cached = tables and os.path.basename(path).startswith("cache-")
        if cached or suffix(path) not in suffixes:
            others[suffix(path)] += 1
            source.left_out[suffix(path)] += 1
        elif not source.chooses(path):
            excluded += 1
        else:
            listed += 1
            where = join(root, path)
            name = path if len(source.paths) == 1 else where
            if tables:
                yield from list_rows(where, name, source)
            else:
                yield Item(name, (ImageRef(where),), _question(source))
    if listed:
        return
    kinds = ", ".join(f"{n} {end or 'without ending'}" for end, n in others.most_common(3))
    cause = f"other files in it: {others.total()}" + (f" ({kinds})" if kinds else "")
    hint = f"ls {shlex.quote(root)}"
    if excluded:
        cause, hint = f"--include and --exclude leave out all of its {excluded}", source.hint(root)
    elif not source.recursive and _holds_images(root, source):
        cause += "; there are images in its subfolders"
        if source.command == ("mvw", "batch"):  # the others have no such option
            hint = source.hint(root, "--recursive")
    kind = "table" if tables else "image"
    raise UsageProblem(f"There is no {kind} in {root}", cause=cause, hint=hint)


def holds_tables(root: str, source: Source) -> bool:
    """Tell a dataset from a folder of images by what comes first, images before tables."""
    for files in walk(root, recursive=True, enters=source.enters):
        found = set(map(suffix, files))
        if not found.isdisjoint(IMAGE_SUFFIXES | TABLE_SUFFIXES):
            return found.isdisjoint(IMAGE_SUFFIXES)
    return False


def _holds_images(root: str, source: Source) -> bool:
    below = chain.from_iterable(walk(root, recursive=True, enters=source.enters))
    return any(suffix(path) in IMAGE_SUFFIXES and source.chooses(path) for path in below)


def _from_file(path: str, source: Source) -> Iterator[Item]:
    if not source.chooses(path):
        return
    if suffix(path) in TABLE_SUFFIXES:
        name = path.rpartition("/")[2] if len(source.paths) == 1 else path
        yield from list_rows(path, name, source)
    elif suffix(path) in SUFFIXES:
        raise UsageProblem(
            f"{path} is no image",
            cause="a file of questions goes with --questions",
            hint=source.questions_hint(path),
        )
    else:
        yield Item(path, (ImageRef(path),), _question(source))


def _from_stdin(source: Source) -> Iterator[Item]:
    """List the paths on standard input: ended by NUL (`find -print0`) or on lines."""
    cause = "it is empty"
    if sys.stdin is None or sys.stdin.isatty():
        cause, data = "it is a terminal" if sys.stdin else "it is closed", b""
    else:
        data = sys.stdin.buffer.read()
    lines = data.split(b"\0") if b"\0" in data else data.replace(b"\r\n", b"\n").split(b"\n")
    paths = [os.fsdecode(line) for line in lines if line]
    check_paths(paths)
    if not paths:
        raise UsageProblem(
            "There is no path on standard input", cause=cause, hint=source.hint("./images")
        )
    for path in paths:
        if source.chooses(path):
            yield Item(path, (ImageRef(path),), _question(source))


def _question(source: Source) -> str:
    if source.question is None:
        raise UsageProblem(
            "There is no question",
            cause="neither the command line nor the profile asks one",
            hint=source.hint(source.paths[0] if source.paths else "./images"),
        )
    return source.question
