"""Findings out of errors, and the command that asks again with something changed."""

from __future__ import annotations

import json
import shlex

from mvw_cli.doctor.findings import Finding
from mvw_cli.errors import MvwError
from mvw_cli.machine.remedy import Changes
from mvw_cli.profiles import Resolved


def refused(check: str, error: MvwError) -> Finding:
    """Turn an error into a finding."""
    found = f"{error.message}: {error.cause}" if error.cause else error.message
    return Finding(check, "problem", found, error.hint)


def again(resolved: Resolved, changes: Changes, *, equivalence: bool = False) -> str:
    """Write the command that asks about the same profile, as it was asked, with keys changed."""
    words = ["mvw", "doctor", *(["--equivalence"] if equivalence else [])]
    if resolved.name is not None and not resolved.is_default:
        words += ["--profile", resolved.name]
    for key, value in {**resolved.by_flag(), **changes}.items():
        written = value if isinstance(value, str) else json.dumps(value)
        words += ["--set", f"{key}={written}"]
    return shlex.join(words)
