"""The page of a report: verdicts and speed-ups first, then all sections with their charts."""

from __future__ import annotations

from mvw_cli.bench.documents import BASELINE, ProfileReport
from mvw_cli.bench.report.charts import charts
from mvw_cli.bench.report.tables import (
    PARTS_OF_OTHERS,
    PHASES,
    caption,
    sections,
    title,
    total_ms,
    verdicts,
)
from mvw_cli.bench.verdict.verdict import measured
from mvw_cli.render import html
from mvw_cli.render.sections import Section, Sentence
from mvw_cli.render.svg import COLOURS


def page(report: ProfileReport) -> str:
    """Write a report as one HTML page."""
    model, env = report.model, report.environment
    drawn, told = charts(report), verdicts(report)
    phases = {key: name for key, name in PHASES.items() if key not in PARTS_OF_OTHERS}
    found = sections(report)
    for section in found:  # verdicts stand at the head of the page
        section.parts[:] = [
            part
            for part in section.parts
            if not isinstance(part, Sentence) or part.text not in told
        ]
    if drawn["answers"] and report.answers is None:
        found.append(Section("answers", "Attention"))
    weights = "random weights, " if model.random_weights else ""
    return html.page(
        title(report),
        found,
        drawn,
        footer=f"Made by mvw {env.mvw}; started {report.started}. "
        "All samples are in the report's JSON file.",
        package="mvw_cli.bench.report",
        template="report.html.j2",
        subtitle=f"{weights}{model.dtype} on {env.device_name}, attention {model.attention}",
        verdicts=told,
        baseline=BASELINE,
        cells=report.cells,
        measured=measured,
        caption=caption,
        total_ms=total_ms,
        phases=phases,
        colour_of={key: place % COLOURS for place, key in enumerate(phases)},
    )
