"""What a command asks about: paths and a question, and the files below folders in a stable order.

A folder's files come first, in natural order (`2.png` before `10.png`), then its subfolders; one
folder's names are held at a time. Addresses with `://` go through fsspec, which comes with
huggingface_hub; the package behind a protocol (s3fs, gcsfs, adlfs, …) does not.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    )
)
"""Of the formats that `images/reading.py` reads; as Pillow registers them."""

TABLE_SUFFIXES = frozenset((".parquet", ".arrow"))


@dataclass(frozen=True, slots=True)
class Globs:
    """Which files are let through: some `include` pattern (if any) and no `exclude` pattern.

    A pattern is matched with the path relative to the folder, where `*` also covers `/`, as in
    `find -path`; one without a slash is matched with the name too.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def choose(self, path: str) -> bool:
        """Whether a file is wanted, by its path with forward slashes."""
        return (not self.include or _matches(path, self.include)) and self.enter(path)

    def enter(self, path: str) -> bool:
        """Whether a folder is wanted: only `exclude` counts."""
        return not _matches(path, self.exclude)


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
    command: tuple[str, ...] = ("mvw", "batch")
    """The command that was typed, for hints: all that stands before a path, so with `--images` as
    its last word where folders go with that option."""

    @property
    def globs(self) -> Globs:
        return Globs(self.include, self.exclude)

    @property
    def help(self) -> str:
        """The command that explains the one that was typed."""
        return shlex.join([*self._name, "--help"])

    def hint(self, path: str, *more: str) -> str:
        """Write the command that asks the same question about something else."""
        name, question = self._name, self.question or "What is in the picture?"
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


def walk(
    root: str,
    wants: Callable[[str], bool],
    *,
    recursive: bool,
    enters: Callable[[str], bool] = lambda path: True,
    visited: set[object] | None = None,
) -> Iterator[str]:
    """Yield the wanted files below a folder, by their paths relative to it, with forward slashes.

    Hidden files and folders are left out. A link to a folder is followed after all true folders,
    and only to where nobody has been: `visited` carries that from walk to walk.

    Raises:
        MvwError: a folder cannot be read. One that vanishes meanwhile is left out.
    """
    visited = set() if visited is None else visited
    folders, links = [""], list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        here = identity(join(root, folder) if folder else root)
        if here is None or here in visited:
            continue
        visited.add(here)
        files: list[str] = []
        subfolders: list[str] = []
        for name, is_folder, is_link in _scan(root, folder):
            path = f"{folder}/{name}" if folder else name
            if not is_folder:
                if wants(path):
                    files.append(path)
            elif recursive and enters(path):
                (links if is_link else subfolders).append(path)
        files.sort(key=_rank)
        yield from files
        folders += sorted(subfolders, key=_rank, reverse=True)
        links.sort(key=_rank)


def holds_any(folder: str, suffixes: Container[str]) -> bool:
    """Whether a file with one of these endings lies directly in a folder."""
    return any(
        not is_folder and suffix(name) in suffixes for name, is_folder, _ in _scan(folder, "")
    )


def identity(folder: str) -> object | None:
    """What a folder is, by whatever name; None where it has vanished."""
    if is_address(folder):
        return folder.rstrip("/")
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _scan(root: str, folder: str) -> Iterator[tuple[str, bool, bool]]:
    """Yield name, whether it is a folder and whether it is a link, of all that is not hidden."""
    where = join(root, folder) if folder else root
    if is_address(root):
        with _reaching(where):
            filesystem, path = _resolve(where)
            found = filesystem.ls(path, detail=True)
        for one in found:
            address = one["name"].rstrip("/")
            name = address.rpartition("/")[2]
            # Object stores list a folder's own marker among its files.
            if name and not name.startswith(".") and address != path.rstrip("/"):
                yield name, one["type"] == "directory", False
        return
    try:
        with os.scandir(where) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    yield entry.name, _is_folder(entry), entry.is_symlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise MvwError(
            f"Cannot read the folder {where}",
            cause=error.strerror,
            hint=f"ls -ld {shlex.quote(where)}",
        ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to where we may not look: reading it will say so
        return False


def _rank(path: str) -> tuple[str, str]:
    """Order numbers within a name by their value: their length goes before their digits."""
    return re.sub("[0-9]+", _number, path.rpartition("/")[2]), path


def _number(match: re.Match[str]) -> str:
    digits = match[0].lstrip("0")
    return f"{len(digits):03}{digits}"


def _matches(path: str, patterns: Sequence[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(
        fnmatch.fnmatchcase(path, pattern)
        or ("/" not in pattern and fnmatch.fnmatchcase(name, pattern))
        for pattern in patterns
    )


def open_address(address: str) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        UsageProblem: nobody here speaks the address's protocol.
        Exception: whatever the package behind the protocol raises.
    """
    filesystem, path = _resolve(address)
    return cast("IO[bytes]", filesystem.open(path, "rb"))


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
