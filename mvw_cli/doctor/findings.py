"""What a check found: one line, and for anything but `ok` a command that helps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]
_ORDER: tuple[Status, ...] = ("ok", "warning", "problem")


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    check: str
    status: Status
    found: str
    advice: str | None = None
    """A command to type next."""


def worst(findings: Iterable[Finding]) -> Status:
    """Say how bad the worst of them is; `ok` for none."""
    return max((one.status for one in findings), key=_ORDER.index, default="ok")
