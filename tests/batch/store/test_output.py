"""Where records end up: the files, by the name that was given."""

from __future__ import annotations

from pathlib import Path

import pytest
from hints import parse_hint

from mvw_cli.batch.store.output import Output, plan_output
from mvw_cli.errors import UsageProblem


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("out/r.v2.JSONL", Output("out/r.v2.JSONL", Path("out/r.v2.JSONL"))),
        ("/tmp/ö.jsonl", Output("/tmp/ö.jsonl", Path("/tmp/ö.jsonl"))),
        (None, Output("default.jsonl", Path("default.jsonl"))),
        ("r.csv", Output("r.csv", Path("r.csv.jsonl"), table=Path("r.csv"))),
        ("o/R.CSV", Output("o/R.CSV", Path("o/R.CSV.jsonl"), table=Path("o/R.CSV"))),
    ],
)
def test_a_table_keeps_its_log_beside(name: str | None, output: Output) -> None:
    assert plan_output(name, "default.jsonl") == output


@pytest.mark.parametrize(
    ("name", "proposed"),
    [
        ("results.json", "results.jsonl"),
        ("my results.xlsx", "my results.jsonl"),
        ("out.v1/results", "out.v1/results.jsonl"),
        (".", "results.jsonl"),
        ("out/", "out/out.jsonl"),
        ("-", "-.jsonl"),
        ("--x.txt", "--x.jsonl"),
        ("s3://bucket/runs/a.jsonl", "a.jsonl"),
        ("s3://bucket/runs/a.csv", "a.jsonl"),
    ],
)
def test_other_names_are_refused_with_one_that_works(name: str, proposed: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        plan_output(name, "default.jsonl")
    error = caught.value
    assert name in error.message and error.cause and error.hint
    assert ("address" in error.cause) == ("://" in name)
    parse_hint(error.hint)
    assert error.hint.endswith(proposed) or error.hint.endswith(f"'{proposed}'")
    plan_output(proposed, "default.jsonl")
