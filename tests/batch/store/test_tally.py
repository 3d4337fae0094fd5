"""The counts of a batch, from its records."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from records import failed, ok

from mvw_cli.batch.serve.server import State
from mvw_cli.batch.store.output import plan_output
from mvw_cli.cli.batch import view as module
from mvw_cli.cli.batch.view import Summary, Tally, duration, progress_line


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "perf_counter", lambda: clock.now)
    return clock


def timed(latency_ms: float | None, **more: Any) -> dict[str, Any]:
    record = ok("a", **more)
    record["timings"]["latency_ms"] = latency_ms
    return record


def test_rate_and_time_left_go_by_what_this_run_has_served(clock: SimpleNamespace) -> None:
    tally = Tally(listed=30)
    for _ in range(10):
        tally.skip()
    assert (tally.elapsed_s, tally.items_per_s, tally.left_s) == (0.0, None, None)
    tally.begin()
    clock.now += 3
    assert (tally.elapsed_s, tally.items_per_s, tally.left_s) == (3.0, None, None)
    for _ in range(5):
        tally.add(timed(5.0))
    clock.now += 7
    assert tally.items_per_s == 0.5
    assert tally.left_s == 30.0
    for _ in range(20):  # a list that was counted before it grew
        tally.add(timed(5.0))
    assert (tally.remaining, tally.left_s) == (0, 0.0)


def test_latency() -> None:
    tally = Tally()
    assert tally.latency_ms() is None
    for value in (None, float("nan"), float("inf")):  # of an item that was read twice, say
        tally.add(timed(value))
    assert tally.latency_ms() is None
    tally.add(timed(30.0))
    assert tally.latency_ms() == {"median": 30.0, "p90": 30.0}
    for value in (10.0, 20.0, 40.0, 50.0):
        tally.add(timed(value))
    assert tally.latency_ms() == {"median": 30.0, "p90": pytest.approx(46.0)}
    assert tally.answered == 8


def test_a_line_of_progress(clock: SimpleNamespace) -> None:
    tally, state = Tally(listed=2000), State(slots=3, max_slots=8)
    assert progress_line(tally, state) == "0 of 2,000, slots 3/8"
    tally.begin()
    for _ in range(900):
        tally.skip()
    for _ in range(99):
        tally.add(timed(5.0))
    tally.add(failed("x"))
    clock.now += 50
    state.generated_tokens, state.kv_allocated_bytes = 15_000, 3 * 2**20
    assert progress_line(tally, state) == (
        "1,000 of 2,000, 1 failed, 2.00 items/s, 300 tokens/s, slots 3/8, KV cache 3.0 MiB, "
        "8 min 20 s left"
    )


def told(tally: Tally, state: State | None = None, **more: Any) -> Summary:
    given = {"failed_in_log": tally.failed, "interrupted": False, **more}
    words = ("images", "What's this?", "--retry-failed", "--json")
    output = plan_output("out/x.csv", "y.jsonl")
    return Summary(tally, state, output=output, words=words, **given)


def test_a_summary(clock: SimpleNamespace) -> None:
    tally = Tally(listed=7)
    tally.skip()
    tally.begin()
    for value in (100.0, 200.0, 4000.0):
        tally.add(timed(value))
    tally.add(failed("x"))
    clock.now += 90
    state = State(kv_allocated_bytes_peak=3 * 2**20)
    summary = told(tally, state)
    assert dict(summary.lines()) == {
        "Items": "3 answered, 1 failed (1 BadImage), 1 had their record before, 2 left",
        "Time": "1 min 30 s, 0.0444 items/s, 0.100 tokens/s",
        "Latency": "median 200 ms, p90 3.2 s",
        "Withdrawal": "3 times, 7.3 KiB of cache entries freed, 62% of what was there",
        "KV cache": "3.0 MiB at most",
        "Records": "out/x.csv",
        "Go on": """mvw batch images 'What'"'"'s this?'""",
        "Retry failed": """mvw batch images 'What'"'"'s this?' --retry-failed""",
    }
    found = summary.facts
    assert (found["output"], found["log"]) == ("out/x.csv", "out/x.csv.jsonl")


def test_a_summary_of_nothing() -> None:
    tally = Tally(listed=2, skipped=2)
    assert dict(told(tally).lines()) == {
        "Items": "0 answered, 2 had their record before",
        "Records": "out/x.csv",
    }
    assert "Retry failed" in dict(told(tally, failed_in_log=1).lines())


def test_durations_as_people_read_them() -> None:
    texts = {0.0004: "0 ms", 0.0126: "13 ms", 0.9999: "1.0 s", 59.94: "59.9 s"}
    texts |= {59.97: "1 min 0 s", 61: "1 min 1 s", 3599.6: "1 h 0 min", 7260: "2 h 1 min"}
    assert {seconds: duration(seconds) for seconds in texts} == texts
