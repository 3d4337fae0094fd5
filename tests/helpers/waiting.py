"""Waits for what other threads and processes do."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object], most_s: float = 10.0) -> None:
    """Wait for a condition; that it never comes is a failure."""
    end = time.monotonic() + most_s
    while not condition():
        assert time.monotonic() < end, f"not within {most_s} s"
        time.sleep(0.005)
