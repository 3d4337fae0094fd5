"""The page of a report: verdicts and speed-ups first, then all sections with their charts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mvw_cli.bench.documents import BASELINE, Cell, Report
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


def page(report: Report) -> str:
    """Write a report as one HTML page."""
    model, env = report.model, report.environment
    weights = "random weights, " if model.random_weights else ""
    by_section: dict[str, list[Chart]] = {}
    for chart in charts(report):
        name = next(name for start, name in _SECTIONS.items() if chart.name.startswith(start))
        by_section.setdefault(name, []).append(chart)
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
        percent=percent,
        phase_bars=list(_phase_bars(report.cells)),
    )


def _phase_bars(cells: Iterable[Cell]) -> Iterable[dict[str, Any]]:
    """Lay out the phases of each arm as one bar, to one scale; the table below has the figures."""
    for cell in cells:
        keys = [key for key in PHASES if key not in PARTS_OF_OTHERS]
        keys = [key for key in keys if any(getattr(arm.phases, key) for arm in cell.arms)]
        longest = max((total_ms(arm.phases) for arm in cell.arms), default=0.0)
        if not keys or longest <= 0:
            continue
        colours = {key: place % COLOURS for place, key in enumerate(keys)}
        bars = []
        for arm in cell.arms:
            medians = {key: getattr(arm.phases, key) for key in keys}
            parts = [
                {
                    "colour": colours[key],
                    "width": f"{100 * summary.median / longest:.3f}",
                    "title": f"{PHASES[key]}: {milliseconds(summary.median)}",
                }
                for key, summary in medians.items()
                if summary is not None
            ]
            total = milliseconds(total_ms(arm.phases))
            bars.append({"name": arm.name, "parts": parts, "total": total})
        yield {
            "title": caption(cell),
            "arms": bars,
            "legend": [{"colour": colours[key], "name": PHASES[key]} for key in keys],
        }
