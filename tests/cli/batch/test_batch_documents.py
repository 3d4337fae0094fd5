"""The summary and the plan of `mvw batch` have the keys that docs/json.md lists, in its order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docs_pages import rows, section

from mvw_cli.batch.serve.capacity import Limits, Survey
from mvw_cli.batch.serve.server import State
from mvw_cli.batch.store.output import Output
from mvw_cli.batch.store.tally import Tally
from mvw_cli.cli.batch.plan import Plan
from mvw_cli.cli.batch.view import summarise


def keys(document: dict[str, Any], before: str = "") -> list[str]:
    found = []
    for key, value in document.items():
        inner = isinstance(value, dict) and key != "errors"
        found += keys(value, f"{before}{key}.") if inner else [before + key]
    return found


def documented(name: str) -> list[str]:
    return [key for key, *_ in rows(section("json.md", name))]


def test_the_summary() -> None:
    tally = Tally(listed=3, latencies_ms=[1.0, 2.0])  # type: ignore[arg-type]
    output = Output("x.jsonl", Path("x.jsonl"))
    summary = summarise(tally, State(), output=output, failed_in_log=0, interrupted=False, words=())
    assert keys(summary.to_dict()) == documented("The summary of `mvw batch`")


def test_the_plan() -> None:
    plan = Plan(3, 1, 2, "x.jsonl", Survey(3, 0, (1, 2), 3, (4, 5), 6, Limits(2)), 7)
    assert keys(plan.to_dict()) == documented("The plan of `mvw batch`")
    assert plan.to_dict()["vision_tokens_total"] == 2
