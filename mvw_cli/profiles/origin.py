"""Where a value of a profile came from, in the words of its messages.

It does not know which origin outranks which (`resolution.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OriginKind = Literal["flag", "environment", "profile", "user", "packaged", "default"]


@dataclass(frozen=True, slots=True)
class Origin:
    """The layer and the place that gave a value."""

    kind: OriginKind
    where: str
    """A file, a variable, a flag, or what the default belongs to."""
    line: int | None = None

    def __str__(self) -> str:
        return self.where if self.line is None else f"{self.where}, line {self.line}"


def shown(path: Path) -> str:
    """Write a path as a person would type it: relative where it lies below this folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd().resolve()))
    except (ValueError, OSError):
        return str(path)
