"""What came of a batch so far, in numbers: from the records alone, in little memory."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from time import perf_counter
from typing import Any


@dataclass(slots=True)
class Tally:
    """Counts of one run. One thread adds, any may look."""

    listed: int = 0
    """Items of the work list."""
    skipped: int = 0
    """Items whose record was there before."""
    answered: int = 0
    failed: int = 0
    generated_tokens: int = 0
    withdrawals: int = 0
    kv_bytes_freed: int = 0
    """Bytes of cache entries that withdrawals have freed, all answers together."""
    kv_bytes_before: int = 0
    """Bytes of the entries that were there when they did."""
    errors: Counter[str] = field(default_factory=Counter)
    """Failed items, by the type of what went wrong."""
    began: float | None = None
    """When serving began, by `perf_counter`."""
    latencies_ms: array[float] = field(default_factory=lambda: array("d"))

    def begin(self) -> None:
        """Start the clock: the model is loaded."""
        self.began = perf_counter()

    def skip(self) -> None:
        """Count an item that needs no work."""
        self.skipped += 1

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a record."""
        if record["status"] != "ok":
            self.failed += 1
            self.errors[record["error"]["type"]] += 1
            return
        self.answered += 1
        self.generated_tokens += record["generated_tokens"]
        latency_ms = record["timings"]["latency_ms"]
        if latency_ms is not None and isfinite(latency_ms):
            self.latencies_ms.append(latency_ms)
        if withdrawal := record["withdrawal"]:
            self.withdrawals += 1
            self.kv_bytes_before += withdrawal["kv_bytes_before"]
            self.kv_bytes_freed += withdrawal["kv_bytes_before"] - withdrawal["kv_bytes_after"]

    @property
    def served(self) -> int:
        """Items that this run has a record of."""
        return self.answered + self.failed

    @property
    def remaining(self) -> int:
        """Items without a record, as far as is known."""
        return max(0, self.listed - self.skipped - self.served)

    @property
    def elapsed_s(self) -> float:
        """Seconds since serving began."""
        return 0.0 if self.began is None else perf_counter() - self.began

    @property
    def items_per_s(self) -> float | None:
        """Records per second; None while there is nothing to tell it from."""
        return self.served / self.elapsed_s if self.served and self.elapsed_s else None

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest will take at this rate."""
        rate = self.items_per_s
        return None if rate is None else self.remaining / rate

    def latency_ms(self) -> dict[str, float] | None:
        """Median and 90th percentile, from reading an image to its last token."""
        if not self.latencies_ms:
            return None
        ordered = sorted(self.latencies_ms)
        return {"median": _quantile(ordered, 0.5), "p90": _quantile(ordered, 0.9)}


def _quantile(ordered: list[float], part: float) -> float:
    """Interpolate linearly between the closest ranks."""
    place = part * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
