"""The command that was typed, written again for hints: to go on, to retry, to start afresh."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

_ONCE = ("--overwrite", "--retry-failed", "--dry-run", "--json")
"""Switches that are about one run, not about what is asked."""


def again(words: Sequence[str], *more: str) -> str:
    """Write the same `mvw batch` with other switches.

    Args:
        words: what came after `mvw batch`.
    """
    kept = [word for word in words if word not in _ONCE]
    return shlex.join(["mvw", "batch", *kept, *more])
