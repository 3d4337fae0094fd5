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
from mvw_cli.render.chart import Chart
from mvw_cli.render.sections import Section, Sentence
from mvw_cli.render.svg import COLOURS
from mvw_cli.text import factor, milliseconds, percent

# Charts by the start of their name, and the section that they stand in.
_SECTIONS = {
    "time-per-token": "speed",
    "vision": "vision",
    "kv-cache": "memory",
    "device-memory": "memory",
    "process-memory": "memory",
    "attention": "answers",
    "quality-speed": "answers",
}


def page(report: ProfileReport) -> str:
    """Write a report as one HTML page."""
    model, env = report.model, report.environment
    weights = "random weights, " if model.random_weights else ""
    by_section: dict[str, list[Chart]] = {}
    for chart in charts(report):
        name = next(name for start, name in _SECTIONS.items() if chart.name.startswith(start))
        by_section.setdefault(name, []).append(chart)
    phases = {key: name for key, name in PHASES.items() if key not in PARTS_OF_OTHERS}
    told = verdicts(report)  # they stand at the head of the page
    parts = [
        Section(one.name, one.title,
                [part for part in one.parts
                 if not (isinstance(part, Sentence) and part.text in told)])
        for one in sections(report)
    ]  # fmt: skip
    if "answers" in by_section and report.answers is None:
        parts.append(Section("answers", "Attention"))
    return html.page(
        title(report),
        parts,
        by_section,
        footer=f"Made by mvw {env.mvw}; started {report.started}. "
        "All samples are in the report's JSON file.",
        package="mvw_cli.bench.report",
        template="report.html.j2",
        subtitle=f"{weights}{model.dtype} on {env.device_name}, attention {model.attention}",
        verdicts=told,
        baseline=BASELINE,
        cells=report.cells,
        factor=factor,
        measured=measured,
        percent=percent,
        caption=caption,
        milliseconds=milliseconds,
        total_ms=total_ms,
        phases=phases,
        colour_of={key: place % COLOURS for place, key in enumerate(phases)},
    )
