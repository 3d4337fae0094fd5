"""What can be wrong with what a run is to be about, each with its cause and a command to type next.

It lists nothing by itself, but for a look at what an error could propose: `sources.py` finds the
fault, this module finds the words.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mvw_cli.batch.source.folder import IMAGE_SUFFIXES, Globs, suffix, walk
from mvw_cli.errors import UsageProblem

if TYPE_CHECKING:
    from mvw_cli.batch.source.sources import Source


@dataclass(slots=True)
class Seen:
    """What a walk met besides the images that it yielded."""

    left_out: int = 0
    """Images that no glob let through."""
    others: Counter[str] = field(default_factory=Counter)
    """Other files, by their endings."""


def no_path(source: Source) -> UsageProblem:
    """Say that nothing was named."""
    return UsageProblem(
        "There is nothing to ask about",
        cause="no folder, image or table is named",
        hint=source.command("./images"),
    )


def no_question(source: Source) -> UsageProblem:
    """Say that there are images and nothing to ask of them."""
    return UsageProblem(
        "There is no question",
        cause="neither the command line nor the profile asks one",
        hint=source.command(source.paths[0] if source.paths else "./images"),
    )


def missing(path: str, source: Source) -> UsageProblem:
    """Say that there is nothing at a path, and what may have been meant."""
    parent, wanted = os.path.split(path.rstrip("/"))
    try:
        names = {name.lower(): name for name in os.listdir(parent or ".")}
    except (OSError, ValueError):
        names = {}
    close = difflib.get_close_matches(wanted.lower(), names, n=1)
    if close:
        like = os.path.join(parent, names[close[0]])
        cause, hint = f"did you mean {like}?", source.command(like)
    else:
        cause, hint = "no such file or folder", f"ls {shlex.quote(parent or '.')}"
    return UsageProblem(f"There is no {path}", cause=cause, hint=hint)


def no_image(root: str, source: Source, seen: Seen) -> UsageProblem:
    """Say that a folder holds no image that was asked for, and where there are some."""
    kinds = ", ".join(f"{n} {end or 'without ending'}" for end, n in seen.others.most_common(3))
    total = seen.others.total()
    cause = f"other files in it: {total}" + (f" ({kinds})" if total else "")
    hint = f"ls {shlex.quote(root)}"
    if seen.left_out:
        cause = f"--include and --exclude leave out all of its {seen.left_out}"
        hint = source.command(root)
    elif not source.recursive and _images_below(root, source.globs):
        cause += "; there are images in its subfolders"
        hint = source.command(root, "--recursive")
    return UsageProblem(f"There is no image in {root}", cause=cause, hint=hint)


def no_table(root: str, source: Source, left_out: int) -> UsageProblem:
    """Say that no table of a dataset was let through."""
    return UsageProblem(
        f"There is no table left in {root}",
        cause=f"--include and --exclude leave out all of its {left_out}",
        hint=source.command(root),
    )


def questions_as_path(path: str) -> UsageProblem:
    """Say where a file of questions goes."""
    return UsageProblem(
        f"{path} is no image",
        cause="a file of questions goes with --questions",
        hint=f"mvw batch --questions {shlex.quote(path)}",
    )


def no_paths_piped(source: Source, cause: str) -> UsageProblem:
    """Say that paths should have come from standard input."""
    return UsageProblem(
        "There is no path on standard input", cause=cause, hint=source.command("./images")
    )


def _images_below(root: str, globs: Globs) -> bool:
    def wants(path: str) -> bool:
        return suffix(path) in IMAGE_SUFFIXES and globs.let_through(path)

    return any(walk(root, wants, recursive=True, enters=globs.let_enter))
