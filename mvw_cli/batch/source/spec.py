"""What a command asks about: paths, questions, columns, and the command itself for hints."""

from __future__ import annotations

import difflib
import os
import shlex
from dataclasses import dataclass

from mvw_cli.batch.source.folder import Globs
from mvw_cli.batch.source.remote import is_address, is_remote_folder
from mvw_cli.errors import UsageProblem

IMAGES_OPTION = "--images"


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
    """
    if is_address(path):
        found = is_remote_folder(path)
    else:
        found = os.path.isdir(path) if os.path.lexists(path) else None
    if found is None:
        raise _missing(path, source)
    return found


def _missing(path: str, source: Source) -> UsageProblem:
    """Name what may have been meant."""
    parent, wanted = os.path.split(path.rstrip("/"))
    try:
        names = {name.lower(): name for name in os.listdir(parent or ".")}
    except (OSError, ValueError):
        names = {}
    close = difflib.get_close_matches(wanted.lower(), names, n=1)
    if close:
        meant = os.path.join(parent, names[close[0]])
        cause, hint = f"did you mean {meant}?", source.hint(meant)
    else:
        cause, hint = "no such file or folder", f"ls {shlex.quote(parent or '.')}"
    return UsageProblem(f"There is no {path}", cause=cause, hint=hint)
