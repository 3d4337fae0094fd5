"""A profile that was found by measuring another: it extends that one, with a withdrawal of its own.

What flags and environment added to the measured profile is repeated in it.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvw_cli.console import deliver
from mvw_cli.profiles.store import is_path


def beside(profile: Path, ending: str) -> Path:
    """Name a file next to a profile: `vtw.yaml` has `vtw.report.json`."""
    return profile.with_name(profile.stem + ending)


def write_derived(
    measured: Mapping[str, Any],
    target: Path,
    *,
    withdrawal: Mapping[str, Any],
    description: str,
    reason: str,
) -> None:
    """Write a profile that withdraws as it is said and is else the one that was measured.

    Args:
        measured: as `Resolved.to_dict` returns it.
        withdrawal: a policy with its fields.
        reason: how the withdrawal was found; becomes a comment.

    Raises:
        MvwError: the file can't be written.
    """
    lines = [f"# {line}" for line in textwrap.wrap(reason, 96)]
    if measured["name"] is not None:
        lines.append(f"extends: {_yaml(_as_seen_from(measured['name'], target))}")
    lines.append(f"description: {_yaml(description)}")
    for key, value in measured["values"].items():
        if key in ("description", "withdrawal"):
            continue
        if isinstance(value, Mapping):
            value = {one: given for one, given in value.items() if _by_hand(measured, key, one)}
            if value:
                lines.append(f"{key}: {_yaml(value)}")
        elif _by_hand(measured, key):
            lines.append(f"{key}: {_yaml(value)}")
    lines.append(f"withdrawal: {_yaml(withdrawal)}")
    deliver("\n".join(lines), str(target))


def _by_hand(measured: Mapping[str, Any], *keys: str) -> bool:
    """Whether a value is from a flag or the environment, and so in no file."""
    return measured["origins"][".".join(keys)]["kind"] in ("flag", "environment")


def _yaml(value: object) -> str:
    """Write a value as JSON, which YAML 1.2 reads."""
    return json.dumps(value, ensure_ascii=False)


def _as_seen_from(name: str, target: Path) -> str:
    """Write a profile's name as a file beside it would say it: paths are relative to that file."""
    if not is_path(name):
        return name
    parent = os.path.realpath(os.path.expanduser(name))
    seen = os.path.relpath(parent, os.path.dirname(os.path.realpath(target)))
    return seen if is_path(seen) else f"./{seen}"
