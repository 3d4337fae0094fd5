"""What the benchmarks share: interleaved pairs, their statistics, the result file.

Medians and bootstrap intervals are those of `mvw profile`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from mvw_cli.bench.stats import FEWEST_PAIRS, Ratio, Summary, paired_ratio, summarise

__all__ = ["Ratio", "Summary", "interleaved", "paired_ratio", "say_ratio", "summarise",
           "write_result"]  # fmt: skip

RESULTS = Path(__file__).parent / "results"
_WRITTEN = ("median", "p90", "samples")
"""What a result file holds of a summary."""
Sample = TypeVar("Sample")


def interleaved(
    arms: Mapping[str, Callable[[], Sample]], *, pairs: int, warm_up: int = 1
) -> dict[str, list[Sample]]:
    """Run the arms in turn, A B C A B C …; return each arm's samples, warm-up left out."""
    samples: dict[str, list[Sample]] = {name: [] for name in arms}
    for turn in range(warm_up + pairs):
        for name, arm in arms.items():
            value = arm()
            if turn >= warm_up:
                samples[name].append(value)
    return samples


def write_result(
    name: str, document: dict[str, Any], device: str = "cpu", folder: Path = RESULTS
) -> Path:
    """Write a result with the environment block it was measured in."""
    from mvw_cli.environment import describe_environment

    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.json"
    whole = {
        "schema_version": 1,
        "benchmark": name,
        **document,
        "environment": asdict(describe_environment(device)),
    }
    file.write_text(json.dumps(whole, indent=2, default=_plain) + "\n", encoding="utf-8")
    return file


def _plain(value: Any) -> Any:
    if isinstance(value, Summary):
        return {name: getattr(value, name) for name in _WRITTEN}
    if isinstance(value, Ratio):
        return asdict(value)
    raise TypeError(type(value).__name__)


def say_ratio(what: str, ratio: Ratio) -> str:
    """One line for the reader: no "faster" where the interval covers 1, or pairs are too few."""
    if ratio.pairs < FEWEST_PAIRS:
        return f"{what}: {ratio.median:.3f} x, {ratio.pairs} pairs, too few to show a difference"
    low, high = ratio.interval_95
    verdict = "" if ratio.shown in ("faster", "slower") else f"  ({ratio.shown})"
    return f"{what}: {ratio.median:.3f} x  [{low:.3f}, {high:.3f}], {ratio.pairs} pairs{verdict}"
