"""Pages: inline charts and styles, nothing fetched; a policy in each page forbids every request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mvw_cli.render.chart import Chart
from mvw_cli.render.jinja import rendered, resource
from mvw_cli.render.sections import Section
from mvw_cli.render.svg import legend, svg
from mvw_cli.text import MISSING

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_SIZES = {"wide": (860, 330), "narrow": (350, 270)}
"""CSS pixels of a chart; a phone gets its own, with text as large."""
_ENDINGS = ("no difference shown", "faster", "slower", "unstable", "differs")


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
        style=resource("mvw_cli.render", "style.css"),
        prose=_prose,
        split_cell=_split_cell,
        css_class=_css_class,
        drawings=_drawings,
        legend=legend,
        **values,
    )


def _prose(text: str) -> str:
    """Keep a number and its sign on one line."""
    return text.replace(" ×", "\u00a0×").replace(" %", "\u00a0%")


def _split_cell(cell: str) -> tuple[str, str, str]:
    """Take a cell apart: a figure, then its share, or what its interval shows."""
    ending = next((one for one in _ENDINGS if cell.endswith(one)), "")
    if ending:
        return cell.removesuffix(ending), "", ending
    figure, _, share = cell.partition("  ")
    return figure, share, ""


def _css_class(shown: str) -> str:
    """Name the class of what an interval shows."""
    return "none" if shown in ("no difference shown", MISSING) else shown


def _drawings(chart: Chart) -> Markup:
    """Draw a chart twice: for a wide screen and for a phone."""
    return Markup("").join(svg(chart, *size, {"class": name}) for name, size in _SIZES.items())
