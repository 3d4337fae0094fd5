"""The counts of a batch, from its records, and what is written of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from records import failed, ok

from mvw_cli.batch.serve.server import State
from mvw_cli.cli.batch import view as module
from mvw_cli.cli.batch.view import Tally, figures_of, summary_lines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "perf_counter", lambda: clock.now)
    return clock


def told(tally: Tally, **more: Any) -> dict[str, str]:
    """The lines of the summary."""
    outside = {"output": "out/x.csv", "kv_allocated_bytes_peak": None, "retry": None, "go_on": None}
    return summary_lines({**tally.facts(), **outside, **more})


def test_figures_of_progress(clock: SimpleNamespace) -> None:
    """The rate goes by what this run has served."""
    tally, state = Tally(listed=2000), State(slots=3, max_slots=8)
    assert figures_of(tally, state) == ["slots 3/8"]
    tally.began = clock.now
    for _ in range(900):
        tally.skip()
    assert (tally.done, figures_of(tally, state)) == (900, ["slots 3/8"])
    for _ in range(99):
        tally.add(ok("a"))
    tally.add(failed("x"))
    clock.now += 50
    assert figures_of(tally, state) == [*("1 failed", "slots 3/8", "2.00 items/s", "0:08:20 left")]


def test_a_summary(clock: SimpleNamespace) -> None:
    tally = Tally(listed=7)
    tally.skip()
    tally.began = clock.now
    for name in "abc":
        tally.add(ok(name))
    tally.add(failed("x"))
    clock.now += 90
    assert told(tally, kv_allocated_bytes_peak=3 * 2**20, retry="R", go_on="A") == {
        "Items": "3 answered, 1 failed (1 BadImage), 1 had their record before, 2 left",
        "Time": "0:01:30, 0.0444 items/s, 0.100 tokens/s",
        "Withdrawal": "3 times, 7.3 KiB of cache entries freed, 62% of what was there",
        "KV cache": "3.0 MiB at most",
        "Records": "out/x.csv",
        "Go on": "A",
        "Retry failed": "R",
    }


def test_a_summary_of_nothing() -> None:
    assert told(Tally(listed=2, skipped=2)) == {
        "Items": "0 answered, 2 had their record before",
        "Records": "out/x.csv",
    }
