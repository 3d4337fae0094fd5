"""Where a report or a plan goes: the terminal, files, a page, charts. No figure is added."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from mvw_cli import console
from mvw_cli.bench.documents import SCHEMA_VERSION, ProfileReport, to_json
from mvw_cli.bench.report.charts import charts
from mvw_cli.bench.report.html import page
from mvw_cli.bench.report.summary import summary
from mvw_cli.bench.report.tables import plan_tables, sections, title
from mvw_cli.console import deliver
from mvw_cli.cost.bounds import Plan
from mvw_cli.errors import UsageProblem
from mvw_cli.files import check_not_input, check_writable, free_name, unwritable
from mvw_cli.render import terminal
from mvw_cli.render.sections import Section, Sentence
from mvw_cli.render.svg import write_charts


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where the command line wants the report."""

    output: str | None
    html: str | None
    plot: str | None
    as_json: bool
    verbose: bool


def check_no_input(wanted: Outputs, inputs: Iterable[str]) -> None:
    """Refuse to write over what a report is made of.

    Raises:
        UsageProblem: an output is an input; so is a chart in a folder of charts, whatever its name.
    """
    charts = () if wanted.plot is None else map(str, Path(wanted.plot).glob("*.svg"))
    check_not_input([wanted.output, wanted.html, *charts], inputs)


def check_outputs(wanted: Outputs) -> None:
    """Refuse what could not be written later, before anything is measured.

    Raises:
        UsageProblem: a path can't be written, or does not end in .json.
    """
    output = wanted.output
    if output is not None and Path(output).suffix.lower() != ".json":
        raise UsageProblem(
            f"-o {output}: a report is written as .json",
            cause="its name has another ending",
            hint=f"mvw profile --m 16 -o {free_name('report.json')}",
        )
    for path in (output, wanted.html):
        if path is not None:
            check_writable(path)
    if wanted.plot is not None:
        there = os.path.isdir(wanted.plot)
        if os.path.lexists(wanted.plot) and not there:
            raise unwritable(wanted.plot, "it is no folder", f"ls -l {shlex.quote(wanted.plot)}")
        check_writable(os.path.join(wanted.plot, "chart.svg") if there else wanted.plot)


def deliver_report(report: ProfileReport, wanted: Outputs) -> None:
    """Write the report to everywhere that was asked for; files first.

    Raises:
        MvwError: something could not be written; what is not on disk is on stdout.
    """
    if wanted.output is not None:
        deliver(to_json(report), wanted.output)
    if wanted.html is not None:
        deliver(page(report), wanted.html)
    try:
        if wanted.plot is not None:
            _draw(report, Path(wanted.plot))
    finally:
        if wanted.as_json:
            console.write(to_json(report))
        else:
            shown = sections(report) if wanted.verbose else summary(report, terminal.width())
            terminal.show(title(report), shown)


def _draw(report: ProfileReport, folder: Path) -> None:
    with suppress(OSError):  # why it could not be made is told by the first chart
        folder.mkdir(exist_ok=True)
    found = chain.from_iterable(charts(report).values())
    for path in write_charts({folder / f"{chart.name}.svg": chart for chart in found}):
        console.note(f"wrote {path}")


def deliver_plan(plan: Plan, name: str, wanted: Outputs) -> None:
    """Write the bounds alone, as `--plan` asks for."""
    document = {"schema_version": SCHEMA_VERSION, "kind": "plan", **asdict(plan)}
    if wanted.output is not None:
        deliver(json.dumps(document, indent=2, ensure_ascii=False), wanted.output)
    if wanted.as_json:
        console.write_json(document)
        return
    verdict = Section("verdict", "Verdict", [Sentence(text, "verdict") for text in plan.verdicts])
    terminal.show(f"Plan for {name}", [verdict, Section("bound", "Bound", plan_tables(plan))])
