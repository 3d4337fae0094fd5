"""What the benchmarks share: interleaved pairs, medians, bootstrap intervals, the result file.

A ratio is only ever taken between the two members of a pair, measured next to each other in one
run, so that a machine whose speed drifts does not decide the outcome.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Summary:
    """Samples of one figure."""

    median: float
    p90: float
    samples: list[float]


@dataclass(frozen=True)
class Ratio:
    """Paired ratio of two arms, with its bootstrap interval."""

    median: float
    interval_95: tuple[float, float]
    pairs: int


def summarise(samples: list[float]) -> Summary:
    p90 = quantiles(samples, n=10, method="inclusive")[-1] if len(samples) > 1 else samples[0]
    return Summary(median(samples), p90, samples)


def paired_ratio(
    numerator: list[float], denominator: list[float], *, draws: int = 4000, seed: int = 0
) -> Ratio:
    """Median of the pairwise ratios; the interval is a percentile bootstrap over the pairs."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    rng = random.Random(seed)
    medians = sorted(median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    low, high = medians[int(0.025 * draws)], medians[int(0.975 * draws)]
    return Ratio(median(ratios), (low, high), len(ratios))


def interleaved(
    arms: Mapping[str, Callable[[], float]], *, pairs: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Run the arms in turn, A B C A B C …; return each arm's samples, warm-up left out."""
    samples: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(warm_up + pairs):
        for name, arm in arms.items():
            value = arm()
            if turn >= warm_up:
                samples[name].append(value)
    return samples


def write_result(name: str, document: dict[str, Any], device: str = "cpu") -> Path:
    """Write a result with the environment block it was measured in."""
    from mvw_cli.environment import describe_environment

    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    whole = {
        "schema_version": 1,
        "benchmark": name,
        **document,
        "environment": asdict(describe_environment(device)),
    }
    file.write_text(json.dumps(whole, indent=2, default=_plain) + "\n", encoding="utf-8")
    return file


def _plain(value: Any) -> Any:
    if isinstance(value, (Summary, Ratio)):
        return asdict(value)
    raise TypeError(type(value).__name__)


def say_ratio(what: str, ratio: Ratio) -> str:
    """One line for the reader: no "faster" where the interval covers 1."""
    low, high = ratio.interval_95
    verdict = "" if low > 1 or high < 1 else "  (no difference shown)"
    return f"{what}: {ratio.median:.3f} x  [{low:.3f}, {high:.3f}], {ratio.pairs} pairs{verdict}"
