"""What the command line asks for, turned into items: one folder, table or list at a time.

Nothing is opened here that holds an image. Items come as a stream, in the same order each time.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from typing import cast

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.source import problems
from mvw_cli.batch.source.folder import (
    IMAGE_SUFFIXES,
    TABLE_SUFFIXES,
    Globs,
    holds_any,
    identity,
    join,
    suffix,
    walk,
)
from mvw_cli.batch.source.remote import is_address, is_remote_folder


@dataclass(frozen=True, slots=True)
class Source:
    """Where the items of a run come from."""

    paths: tuple[str, ...]
    """Folders, image files, tables, folders of tables, addresses of fsspec; `-`: paths on stdin."""
    question: str | None = None
    """Asked of every image that brings no question of its own."""
    questions: str | None = None
    """JSONL or CSV file with image, question, id and answer."""
    recursive: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    image_column: str | None = None
    question_column: str | None = None
    id_column: str | None = None
    answer_column: str | None = None

    @property
    def globs(self) -> Globs:
        """What `include` and `exclude` let through."""
        return Globs(self.include, self.exclude)

    def command(self, path: str, *more: str) -> str:
        """A command for a hint: the same question about something else."""
        asked = [self.question or "What is in the picture?"]
        return shlex.join(["mvw", "batch", path, *asked, *more])


def list_items(source: Source) -> Iterator[Item]:
    """Yield what is asked.

    Ids: the path relative to the folder (below the folder as given, where there are several
    paths); a path as given; the questions file's or the table's id, else `scene.png#2` for the
    second question about an image and `scenes.parquet#17` for a row, counted from 0.

    Raises:
        MvwError: something does not exist, cannot be read, holds no image, or is no such file as
            it should be. Images themselves are not looked at.
    """
    if source.questions is not None:
        from mvw_cli.batch.source.questions import list_questions

        yield from list_questions(source)
        return
    if not source.paths:
        raise problems.no_path(source)
    for path in source.paths:  # before the first is listed, and asked about
        if path != "-" and not is_address(path) and _local(path) is None:
            raise problems.missing(path, source)
    # A file that is named is not listed a second time with its folder.
    named = {os.path.realpath(path) for path in source.paths if os.path.isfile(path)}
    visited: set[object] = set()
    for path in source.paths:
        if path == "-":
            yield from _from_stdin(source)
        elif not is_folder(path, source):
            yield from _from_file(path, source)
        elif _holds_tables(path, source):
            yield from _from_tables(path, source, visited)
        else:
            yield from _from_folder(path, source, named, visited)


def is_folder(path: str, source: Source) -> bool:
    """Say whether a path or address is a folder.

    Raises:
        UsageProblem: there is neither file nor folder.
    """
    found = is_remote_folder(path) if is_address(path) else _local(path)
    if found is None:
        raise problems.missing(path, source)
    return found


def _local(path: str) -> bool | None:
    return os.path.isdir(path) if os.path.lexists(path) else None


def _from_folder(
    root: str, source: Source, named: set[str], visited: set[object]
) -> Iterator[Item]:
    if identity(root) in visited:
        return  # it lies in a folder that was listed before
    globs, seen, listed = source.globs, problems.Seen(), False
    names = {os.path.basename(path) for path in named}

    def wants(path: str) -> bool:
        ending = suffix(path)
        if ending not in IMAGE_SUFFIXES:
            seen.others[ending] += 1
            return False
        if not globs.let_through(path):
            seen.left_out += 1
            return False
        return True

    for path in walk(
        root, wants, recursive=source.recursive, enters=globs.let_enter, visited=visited
    ):
        listed = True
        where = join(root, path)
        if os.path.basename(path) in names and os.path.realpath(where) in named:
            continue
        id = path if len(source.paths) == 1 else where
        yield Item(id, (ImageRef(where),), _question(source))
    if not listed:
        raise problems.no_image(root, source, seen)


def _holds_tables(root: str, source: Source) -> bool:
    """Tell a dataset from a folder of images by what comes first, images before tables."""
    if holds_any(root, IMAGE_SUFFIXES):
        return False
    if holds_any(root, TABLE_SUFFIXES):
        return True
    either = IMAGE_SUFFIXES | TABLE_SUFFIXES
    below = walk(
        root,
        lambda path: suffix(path) in either,
        recursive=True,
        enters=source.globs.let_enter,
    )
    first = next(below, "")
    return suffix(first) in TABLE_SUFFIXES and not holds_any(
        join(root, os.path.dirname(first)), IMAGE_SUFFIXES
    )


def _from_tables(root: str, source: Source, visited: set[object]) -> Iterator[Item]:
    if identity(root) in visited:
        return
    from mvw_cli.batch.source.table_rows import list_rows

    globs, left_out, listed = source.globs, 0, False

    def wants(path: str) -> bool:
        nonlocal left_out
        # datasets keeps what its `map` computed beside the data, as cache-….arrow
        name = path.rpartition("/")[2]
        if suffix(path) not in TABLE_SUFFIXES or name.startswith("cache-"):
            return False
        let_through = globs.let_through(path)
        left_out += not let_through
        return let_through

    # A repository of datasets keeps its tables in `data/` or in a folder for each configuration.
    recursive = source.recursive or not holds_any(root, TABLE_SUFFIXES)
    for path in walk(root, wants, recursive=recursive, enters=globs.let_enter, visited=visited):
        listed = True
        where = join(root, path)
        yield from list_rows(where, path if len(source.paths) == 1 else where, source)
    if not listed:
        raise problems.no_table(root, source, left_out)


def _from_file(path: str, source: Source) -> Iterator[Item]:
    if not source.globs.let_through(path):
        return
    if suffix(path) in TABLE_SUFFIXES:
        from mvw_cli.batch.source.table_rows import list_rows

        name = path.rpartition("/")[2] if len(source.paths) == 1 else path
        yield from list_rows(path, name, source)
    elif suffix(path) in (".jsonl", ".csv"):
        raise problems.questions_as_path(path)
    else:
        yield Item(path, (ImageRef(path),), _question(source))


def _from_stdin(source: Source) -> Iterator[Item]:
    if sys.stdin is None or sys.stdin.isatty():
        raise problems.no_paths_piped(source, "it is a terminal" if sys.stdin else "it is closed")
    listed, globs = False, source.globs
    for line in _lines(cast(BufferedIOBase, sys.stdin.buffer)):
        path = os.fsdecode(line)
        listed = True
        if globs.let_through(path):
            yield Item(path, (ImageRef(path),), _question(source))
    if not listed:
        raise problems.no_paths_piped(source, "it is empty")


def _lines(stream: BufferedIOBase) -> Iterator[bytes]:
    """Take paths apart at NUL where the first one ends with it (find -print0), else at newlines."""
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
        raise problems.no_question(source)
    return source.question
