"""Where the outcome of a search goes: profile, report, pictures and the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mvw_cli import console
from mvw_cli.cli.calibrate.task import Task
from mvw_cli.cli.destination import deliver
from mvw_cli.errors import ExitCode, MvwError

if TYPE_CHECKING:
    from mvw_cli.calibrate.report import Report
    from mvw_cli.render.chart import Chart
    from mvw_cli.render.sections import Section


def deliver_outcome(
    task: Task,
    report: Report,
    description: str,
    parts: Sequence[Section],
    pictures: Sequence[Chart],
) -> int:
    """Write everything; files first.

    Args:
        description: of the profile, in a few words.

    Raises:
        MvwError: a file can't be written, or no candidate qualifies: after all else is there.
    """
    from mvw_cli.bench.verdict.derived_profile import write_derived
    from mvw_cli.calibrate.report import to_json
    from mvw_cli.render.terminal import show

    outcome = report.outcome
    document = to_json(report)
    deliver(document, str(task.beside(".report.json")))
    written = [str(task.beside(".report.json"))]
    for picture in pictures:
        written += draw(task, picture)
    if outcome.withdrawal is not None:
        write_derived(
            report.profile,
            Path(task.output),
            withdrawal=outcome.withdrawal,
            description=description,
            reason=" ".join(
                [f"Found by: {shlex.join(report.command)}.", outcome.reason, *outcome.remarks]
            ),
            hint=f"mvw calibrate {task.method} -o other.yaml",
        )
        written.insert(0, task.output)
    if task.as_json:
        console.write(document)
    else:
        show(f"mvw calibrate {task.method}", parts)
    for path in written:
        console.note(f"wrote {path}")
    for remark in outcome.remarks:
        console.warn(remark)
    if outcome.withdrawal is None:
        raise MvwError("Nothing is suggested", cause=outcome.reason, hint=task.help)
    return ExitCode.ITEMS_FAILED if report.failed else ExitCode.OK


def draw(task: Task, picture: Chart) -> list[str]:
    """Write a chart as SVG."""
    from mvw_cli.render.svg import write_charts

    return [str(path) for path in write_charts({task.beside(f".{picture.name}.svg"): picture})]
