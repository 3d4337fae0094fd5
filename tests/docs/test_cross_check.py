"""What benchmarks/cross_check.py makes of two instruments' times: planted ones, so no harness."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HARNESS = [(500.0 + n, 20.0 + n / 10, 19.0 + n / 10) for n in range(12)]
"""TTFT, mean TPOT, median TPOT, in ms."""
GENERATE = [(1.2 * ttft, 1.1 * tpot, 1.3 * median) for ttft, tpot, median in HARNESS]


@pytest.fixture
def cross_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("cross_check")


def profiler(module: Any, ttft: float, tpot: float, median: float) -> list[Any]:
    """The harness's times, each off by a factor."""
    return [module.Shown(one * ttft, other * tpot, third * median) for one, other, third in HARNESS]


def test_each_figure_is_held_against_the_harness_on_the_same_computation(cross_check: Any) -> None:
    shown = cross_check.compared(profiler(cross_check, 1.01, 0.98, 1.04), HARNESS, GENERATE)
    ratios = shown["profiler_over_harness"]
    assert ratios["ttft"].median == pytest.approx(1.01)
    assert ratios["tpot"].median == pytest.approx(1.04)  # the report's own TPOT
    assert ratios["tpot_mean"].median == pytest.approx(0.98)
    assert shown["within_limit"] == {"ttft": True, "tpot": True, "tpot_mean": True}
    other = shown["generate_over_engine_by_harness"]
    assert other["ttft"].median == pytest.approx(1.2)
    assert other["tpot"].median == pytest.approx(1.3)
    assert other["tpot_mean"].median == pytest.approx(1.1)
    assert shown["tpot_ms"]["profiler"].median == pytest.approx(1.04 * 19.55)


def test_an_interval_beyond_the_limit_is_told_apart_from_its_median(cross_check: Any) -> None:
    spread = [
        cross_check.Shown((0.9, 1.0, 1.1)[turn % 3] * ttft, tpot, median)
        for turn, (ttft, tpot, median) in enumerate(HARNESS)
    ]
    shown = cross_check.compared(spread, HARNESS, GENERATE)
    assert shown["profiler_over_harness"]["ttft"].median == pytest.approx(1.0)
    assert shown["within_limit"] == {"ttft": True, "tpot": True, "tpot_mean": True}
    assert shown["interval_within_limit"] == {"ttft": False, "tpot": True, "tpot_mean": True}
