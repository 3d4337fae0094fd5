"""What a command asks about: paths and a question, and the files below folders in a stable order.

A folder's files come first, in natural order (`2.png` before `10.png`), then its subfolders.
Addresses with `://` go through fsspec, which comes with
huggingface_hub; the package behind a protocol (s3fs, gcsfs, adlfs, …) does not.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any, cast

from mvw_cli.batch.items import is_address
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.text import closest, error_line

IMAGES_OPTION = "--images"
IMAGE_SUFFIXES = frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".gif", ".bmp", ".dib"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".webp", ".tif", ".tiff", ".avif", ".avifs"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".heic", ".heics", ".heif", ".heifs"),
        ".hif",
    )
)
"""Of the formats that `images/reading.py` reads; as Pillow and pillow-heif register them."""

TABLE_SUFFIXES = frozenset((".parquet", ".arrow"))


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
    """Glob patterns of files; all where there is none. A pattern is matched with the path relative
    to the folder, where `*` covers `/` too, as in `find -path`; without a slash also with the name.
    """
    exclude: tuple[str, ...] = ()
    """The same of files and folders that are left out."""
    image_column: str | None = None
    question_column: str | None = None
    id_column: str | None = None
    answer_column: str | None = None
    whole: bool = False
    """Whether items bring all else that stands in their rows, may lack an image, and go by `index`
    rather than by `id`: what an evaluation reads."""
    left_out: Counter[str] = field(default_factory=Counter, compare=False)
    """Files of folders that are no items, by ending; counted while items are listed."""
    command: tuple[str, ...] = ("mvw", "batch")
    """The command that was typed, for hints: all that stands before a path, so with `--images` as
    its last word where folders go with that option."""

    def chooses(self, path: str) -> bool:
        """Whether a file is wanted, by its path with forward slashes."""
        return (not self.include or _matches(path, self.include)) and self.enters(path)

    def enters(self, path: str) -> bool:
        """Whether a folder is wanted: only `exclude` counts."""
        return not _matches(path, self.exclude)

    @property
    def help(self) -> str:
        """The command that explains the one that was typed."""
        return shlex.join([*self._name, "--help"])

    def hint(self, path: str, *more: str) -> str:
        """Write the command that asks the same question about something else."""
        name, question = self._name, self.question or "What is in the picture?"
        if self.whole:  # its rows bring the questions
            return shlex.join([*name, path, *more])
        if name == self.command:
            return shlex.join([*name, path, question, *more])
        return shlex.join([*name, question, IMAGES_OPTION, path, *more])

    def questions_hint(self, file: str, folder: str | None = None) -> str:
        """Write the command that asks the questions of a file."""
        below = [] if folder is None else [*self.command[len(self._name) :], folder]
        return shlex.join([*self._name, *below, "--questions", file])

    @property
    def _name(self) -> tuple[str, ...]:
        return self.command[:-1] if self.command[-1] == IMAGES_OPTION else self.command


def is_folder(path: str, source: Source) -> bool:
    """Whether a path or address is a folder.

    Raises:
        UsageProblem: there is neither file nor folder.
        MvwError: an address cannot be looked up.
    """
    if is_address(path):
        with _reaching(path):
            filesystem, where = _resolve(path)
            is_there = filesystem.exists(where)
            found = bool(filesystem.isdir(where))
    else:
        is_there, found = os.path.lexists(path), os.path.isdir(path)
    if found or is_there:
        return found
    parent, wanted = os.path.split(path.rstrip("/"))
    try:
        near = closest(wanted, os.listdir(parent or "."))
    except (OSError, ValueError):
        near = None
    cause, hint = "no such file or folder", f"ls {shlex.quote(parent or '.')}"
    if near is not None:
        meant = os.path.join(parent, near)
        cause, hint = f"did you mean {meant}?", source.hint(meant)
    raise UsageProblem(f"There is no {path}", cause=cause, hint=hint)


def suffix(path: str) -> str:
    """The ending of a path or address, lower case, with its dot."""
    return PurePosixPath(path).suffix.lower()


def join(folder: str, path: str) -> str:
    """A path below a folder, which may be an address; what is absolute stays as it is."""
    if is_address(path):
        return path
    if is_address(folder) and not os.path.isabs(path):
        return f"{folder.rstrip('/')}/{path}"
    return os.path.join(folder, path)


def walk(root: str, *, recursive: bool, enters: Callable[[str], bool]) -> Iterator[list[str]]:
    """Yield the files of a folder and of those below it, folder by folder.

    They go by their paths relative to the root, with forward slashes. Hidden files and folders are
    left out; a link to where the walk has been is not followed.

    Raises:
        MvwError: a folder cannot be read.
    """
    visited: set[str] = set()
    folders = [""]
    while folders:
        below = folders.pop()
        where = join(root, below) if below else root
        here = where if is_address(where) else os.path.realpath(where)
        if here in visited:
            continue
        visited.add(here)
        entries = _entries(where)
        names = sorted((name for name in entries if not name.startswith(".")), key=_rank)
        paths = {f"{below}/{name}" if below else name: entries[name] for name in names}
        yield [path for path, is_folder in paths.items() if not is_folder]
        if recursive:
            subfolders = [path for path, is_folder in paths.items() if is_folder and enters(path)]
            folders += reversed(subfolders)


def _entries(folder: str) -> dict[str, bool]:
    """Return the names in a folder, and which of them are folders."""
    if is_address(folder):
        with _reaching(folder):
            filesystem, path = _resolve(folder)
            found = {one["name"].rstrip("/"): one for one in filesystem.ls(path, detail=True)}
        found.pop(path.rstrip("/"), None)  # object stores list a folder's own marker
        return {name.rpartition("/")[2]: one["type"] == "directory" for name, one in found.items()}
    try:
        with os.scandir(folder) as entries:
            return {
                # `is_dir` alone would raise for a link to where we may not look.
                entry.name: entry.is_dir(follow_symlinks=False)
                or (entry.is_symlink() and os.path.isdir(entry))
                for entry in entries
            }
    except OSError as error:
        raise MvwError(
            f"Cannot read the folder {folder}",
            cause=error.strerror,
            hint=f"ls -ld {shlex.quote(folder)}",
        ) from None


def _rank(name: str) -> tuple[str, str]:
    """Order numbers within a name by their value."""
    return re.sub("[0-9]+", lambda number: number[0].zfill(20), name), name


def _matches(path: str, patterns: Sequence[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(
        fnmatch.fnmatchcase(path, pattern)
        or ("/" not in pattern and fnmatch.fnmatchcase(name, pattern))
        for pattern in patterns
    )


def open_file(path: str) -> IO[bytes]:
    """Open a file or an address for reading.

    Raises:
        UsageProblem: nobody here speaks the address's protocol.
        Exception: whatever the system or the package behind the protocol raises.
    """
    if not is_address(path):
        return open(path, "rb")
    filesystem, where = _resolve(path)
    return cast("IO[bytes]", filesystem.open(where, "rb"))


def _resolve(address: str) -> tuple[Any, str]:
    import fsspec

    protocol = address.partition("://")[0].rpartition("::")[2]
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        missing = error.__cause__.name if isinstance(error.__cause__, ImportError) else error.name
        package = (missing or "").partition(".")[0] or f"fsspec[{protocol}]"
        raise UsageProblem(
            f"Cannot read {address}",
            cause=f"{protocol}:// needs the package {package}, which is not installed",
            hint=f"pip install {shlex.quote(package)}",
        ) from None
    except ValueError as error:
        known = "import fsspec; print(*fsspec.available_protocols())"
        raise UsageProblem(
            f"Cannot read {address}", cause=str(error), hint=f"python -c {shlex.quote(known)}"
        ) from None
    return filesystem, str(path)


@contextmanager
def _reaching(address: str) -> Iterator[None]:
    """Make one error of all that the packages behind protocols raise."""
    try:
        yield
    except MvwError:
        raise
    except Exception as error:
        code = f"import fsspec; print(fsspec.open({address!r}))"
        hint = f"python -c {shlex.quote(code)}"
        raise MvwError(f"Cannot read {address}", cause=error_line(error), hint=hint) from None
