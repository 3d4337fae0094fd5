"""The page of a report: verdicts and speed-ups first, then all sections with their charts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mvw_cli.bench.documents import BASELINE, Arm, Cell, Report
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
        cards=[_card(cell, arm) for cell in report.cells for arm in cell.arms if arm.ratios],
        phase_bars=list(_phase_bars(report.cells)),
    )


def _card(cell: Cell, arm: Arm) -> dict[str, Any]:
    """Gather what an arm has won: the ratio with its interval, its bound, what it frees."""
    card: dict[str, Any] = dict.fromkeys(("ratio", "bound", "first_token", "freed"))
    card["name"] = f"Batch {cell.batch}, {arm.name}"
    found = arm.ratios.get("tokens_per_s")
    if found is not None:
        card["ratio"] = factor(found.median)
        card["interval"] = factor(found.median, found.interval_95).partition("× ")[2]
        card["shown"] = found.shown
    if arm.bound is not None:
        card["bound"] = factor(arm.bound.speedup)
    prefill, first = arm.bound.prefill if arm.bound else None, arm.ratios.get("ttft")
    if prefill is not None and first is not None and prefill.share < 1:
        card["first_token"] = factor(first.median, first.interval_95)
        card["first_token_bound"] = factor(prefill.speedup)
        card["first_token_shown"] = first.shown
    before, after = arm.memory.kv_bytes_before, arm.memory.kv_bytes_after
    if before > after:
        card["freed"] = percent((before - after) / before)
    return card


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
