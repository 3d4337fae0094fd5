"""Where a report goes: the terminal, a file, a page, pictures. It adds no figure."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mvw_cli import console
from mvw_cli.cli.destination import deliver
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.files import check_writable

if TYPE_CHECKING:
    from mvw_cli.bench.documents import Report
    from mvw_cli.cli.profile.task import Task

_FORMATS = (".json", ".md")
_HELP = "mvw profile --help"


def check_outputs(
    output: str | None, plot: str | None, html: str | None, suggest: str | None
) -> None:
    """Refuse what could not be written later, before anything is measured.

    Raises:
        UsageProblem: a path can't be written, or its ending is of no format.
    """
    if output is not None:
        if Path(output).suffix.lower() not in _FORMATS:
            raise UsageProblem(
                f"-o {output}: a report is written as .json or .md",
                cause="its name has none of these endings",
                hint="mvw profile --m 16 -o report.json",
            )
        check_writable(output, _HELP)
    for path in (html, suggest):
        if path is not None:
            check_writable(path, _HELP)
    if plot is not None:
        check_writable(os.path.join(os.path.dirname(os.path.abspath(plot)), "mvw"), _HELP)


def deliver_report(report: Report, task: Task) -> None:
    """Write the report to everywhere that was asked for; files first.

    Raises:
        MvwError: something could not be written; what is not on disk is on stdout.
    """
    from mvw_cli.bench.documents import to_json
    from mvw_cli.bench.report.tables import sections, title
    from mvw_cli.render.terminal import show

    if task.output is not None:
        deliver(_document(report, task.output), task.output)
    if task.html is not None:
        from mvw_cli.bench.report.html import page

        deliver(page(report), task.html)
    if task.plot is not None:
        for path in _plot(report, Path(task.plot)):
            console.note(f"wrote {path}")
    if task.suggest is not None and report.answers is not None:
        from mvw_cli.bench.verdict.suggest import write_profile

        if report.answers.suggestion is not None:
            write_profile(report, Path(task.suggest))
            console.note(f"wrote {task.suggest}: m = {report.answers.suggestion}")
        else:
            console.warn(f"No m is suggested: {report.answers.suggestion_reason}")
    if task.as_json:
        console.write(to_json(report))
    else:
        show(title(report), sections(report))


def _plot(report: Report, folder: Path) -> list[Path]:
    from mvw_cli.bench.report.charts import charts
    from mvw_cli.render.svg import write_charts

    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MvwError(
            f"Cannot write the charts into {folder}",
            cause=error.strerror or str(error),
            hint=f"ls -ld {shlex.quote(str(folder.parent))}",
        ) from None
    return write_charts({folder / f"{chart.name}.svg": chart for chart in charts(report)})


def _document(report: Report, path: str) -> str:
    if Path(path).suffix.lower() == ".md":
        from mvw_cli.bench.report.tables import sections, title
        from mvw_cli.render import markdown

        return markdown.document(title(report), sections(report))
    from mvw_cli.bench.documents import to_json

    return to_json(report)
