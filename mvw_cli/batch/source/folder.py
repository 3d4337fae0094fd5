"""Folders of files, walked in a stable order, one folder's names at a time.

A folder's files come first, in natural order (`2.png` before `10.png`), then its subfolders.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mvw_cli.batch.source.remote import is_address, list_address
from mvw_cli.errors import MvwError

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


def suffix(path: str) -> str:
    """The ending of a path or address, lower case, with its dot."""
    return PurePosixPath(path).suffix.lower()


def join(folder: str, path: str) -> str:
    """A path below a folder, which may be an address."""
    if is_address(folder):
        return f"{folder.rstrip('/')}/{path}"
    return os.path.join(folder, path) if folder else path


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
        for name, is_folder in list_address(where):
            if not name.startswith("."):
                yield name, is_folder, False
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
