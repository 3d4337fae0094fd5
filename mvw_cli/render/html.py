"""Pages: inline charts and styles, nothing fetched; a policy in each page forbids every request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mvw_cli.render.chart import Chart
from mvw_cli.render.jinja import rendered, resource
from mvw_cli.render.sections import Section, split_cell
from mvw_cli.render.svg import legend, svg

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_CHART_PX = (460, 280)
"""Small enough for its text to be read on a phone, where the page scales it down a little."""


def page(
    title: str,
    sections: Sequence[Section],
    charts: Mapping[str, Sequence[Chart]] | None = None,
    *,
    footer: str,
    package: str = "mvw_cli.render",
    template: str = "sections.html.j2",
    **values: Any,
) -> str:
    """Write sections as one HTML page.

    Args:
        charts: by the name of the section that they stand in.
        package, template: another template that extends `sections.html.j2`, and what it gets.
    """
    return rendered(
        package,
        template,
        title=title,
        sections=sections,
        charts=charts or {},
        footer=footer,
        policy=POLICY,
        style=resource("mvw_cli.render", "chart.css") + resource("mvw_cli.render", "style.css"),
        split_cell=split_cell,
        drawing=lambda chart: svg(chart, *_CHART_PX, {"class": "chart"}),
        legend=legend,
        **values,
    )
