"""What a check found: one line, and for anything but `ok` a command that helps."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal

from mvw_cli.errors import MvwError
from mvw_cli.machine.fit import Changes, set_options
from mvw_cli.profiles.resolution import Resolved

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    check: str
    status: Status
    found: str
    advice: str | None = None
    """A command to type next."""


def refused(check: str, error: MvwError) -> Finding:
    """Turn an error into a finding."""
    found = f"{error.message.removesuffix('.')}: {error.cause}" if error.cause else error.message
    return Finding(check, "problem", found, error.hint)


def again(resolved: Resolved, changes: Changes, *, equivalence: bool = False) -> str:
    """Write the command that asks about the same profile, as it was asked, with keys changed."""
    words = ["mvw", "doctor", *(["--equivalence"] if equivalence else [])]
    if resolved.name is not None and not resolved.is_default:
        words += ["--profile", resolved.name]
    changed = {**resolved.by_flag(), **changes}
    if "engine" in changed:
        words += ["--engine", changed.pop("engine")]
    return shlex.join([*words, *set_options(changed)])
