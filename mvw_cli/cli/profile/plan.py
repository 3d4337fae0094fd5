"""`mvw profile --plan`: the bounds alone, to the terminal or a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvw_cli import console
from mvw_cli.errors import UsageProblem

if TYPE_CHECKING:
    from mvw_cli.cost.bounds import Plan


def deliver_plan(plan: Plan, name: str, *, as_json: bool, output: str | None) -> None:
    """Write a plan.

    Raises:
        UsageProblem: a file of another format than JSON is asked for.
    """
    from mvw_cli.bench.report.tables import plan_tables
    from mvw_cli.cli.destination import deliver
    from mvw_cli.render.sections import Section, Sentence
    from mvw_cli.render.terminal import show

    if output is not None:
        if Path(output).suffix.lower() != ".json":
            raise UsageProblem(
                f"-o {output}: a plan is written as .json",
                cause="its other formats are for measurements",
                hint="mvw profile --plan -o plan.json",
            )
        deliver(_json(plan), output)
    if as_json:
        console.write(_json(plan))
        return
    verdicts = [Sentence(sentence, "verdict") for sentence in plan.verdicts]
    parts = [Section("verdict", "Verdict", [*verdicts]),
             Section("bound", "Bound", plan_tables(plan))]  # fmt: skip
    show(f"Plan for {name}", parts)


def _json(plan: Plan) -> str:
    import json

    from pydantic import TypeAdapter

    from mvw_cli.bench.documents import SCHEMA_VERSION
    from mvw_cli.cost.bounds import Plan

    document: dict[str, Any] = TypeAdapter(Plan).dump_python(plan, mode="json")
    return json.dumps(
        {"schema_version": SCHEMA_VERSION, "kind": "plan", **document},
        indent=2,
        ensure_ascii=False,
    )
