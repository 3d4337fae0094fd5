"""What watching costs, in the docs, is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["mass", "entropy", "weights", "pulse"])
def test_the_cost_of_watching_is_that_of_the_result_file(name: str) -> None:
    result = json.loads((ROOT / "benchmarks/results/signals.json").read_text(encoding="utf-8"))
    ratio = result["ratio_to_none"][name]
    low, high = ratio["interval_95"]
    page = (ROOT / "docs/policies.md").read_text(encoding="utf-8")
    assert f"| {ratio['median']:.2f} [{low:.2f}, {high:.2f}] |" in page
    assert f"{ratio['pairs']} pairs" in page
