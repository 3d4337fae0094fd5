"""Amounts as people read them."""

from __future__ import annotations


def readable_bytes(count: float) -> str:
    """Write bytes in the largest unit, up to GiB, that leaves at least 1 of it."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.2f} GiB"
