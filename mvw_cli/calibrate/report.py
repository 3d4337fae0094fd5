"""What a search has found: one tree of figures for every method, as it lies in the JSON file.

Units are in the names. It does not know how a figure comes about.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mvw_cli.environment import Environment

SCHEMA_VERSION = 1
_HERE = "samples stand here"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a method makes of its samples."""

    curve: list[dict[str, Any]]
    """One entry for each candidate, in order."""
    withdrawal: dict[str, Any] | None
    """The `withdrawal` of the profile that is suggested; None where no candidate qualifies."""
    reason: str
    """Why this one, or why none."""
    remarks: list[str]
    """What speaks against it, or has to be known about it."""


@dataclass(frozen=True, slots=True)
class Report:
    """One run of `mvw calibrate`."""

    method: str
    environment: Environment
    model: dict[str, Any]
    """As `Session.facts` tells it."""
    profile: dict[str, Any]
    """As `Resolved.to_dict` tells it."""
    command: list[str]
    started: str
    seconds: float
    """Of this run; samples of earlier ones are not in it."""
    settings: dict[str, Any]
    """Of the method."""
    samples: list[dict[str, Any]]
    """In the order of the items."""
    failed: list[str]
    """Items that were left out, and why."""
    outcome: Outcome


def to_json(report: Report) -> str:
    """Write a report as JSON, each sample on a line of its own."""
    document: Mapping[str, Any] = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(report)}
    whole = json.dumps({**document, "samples": [_HERE]}, indent=2, ensure_ascii=False, default=str)
    lines = (json.dumps(one, ensure_ascii=False, default=str) for one in document["samples"])
    return whole.replace(f'"{_HERE}"', ",\n    ".join(lines), 1)
