"""Pages through Jinja2: inline charts and styles, nothing fetched, all text escaped.

A policy in each page forbids every request. A package's own templates lie in its `templates`
folder, and may extend those of this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mvw_cli.render.chart import Chart
from mvw_cli.render.sections import Section, Sentence
from mvw_cli.render.svg import legend, svg
from mvw_cli.text import MISSING, printable

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
        **values,
    )


def rendered(package: str, template: str, **values: Any) -> str:
    """Fill in a template of a package."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("mvw_cli.render")]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_visible,
    )
    environment.filters |= {"prose": _prose, "cell": split_cell, "shown": css_class}
    environment.tests["sentence"] = lambda part: isinstance(part, Sentence)
    environment.globals |= {"drawings": _drawings, "legend": legend}
    return environment.get_template(template).render(**values)


def resource(package: str, name: str) -> Markup:
    """Read a file of a package's templates that is part of a page as it is."""
    return Markup(files(package).joinpath("templates", name).read_text("utf-8"))


def _visible(value: Any) -> Any:
    """Make control characters in text visible; what is markup already stays as it is."""
    return printable(value) if type(value) is str else value


def _prose(text: str) -> str:
    """Keep a number and its sign on one line."""
    return text.replace(" ×", "\u00a0×").replace(" %", "\u00a0%")


def split_cell(cell: str) -> tuple[str, str, str]:
    """Take a cell apart: a figure, then its share, or what its interval shows."""
    ending = next((one for one in _ENDINGS if cell.endswith(one)), "")
    if ending:
        return cell.removesuffix(ending), "", ending
    figure, _, share = cell.partition("  ")
    return figure, share, ""


def css_class(shown: str) -> str:
    """Name the class of what an interval shows."""
    return "none" if shown in ("no difference shown", MISSING) else shown


def _drawings(chart: Chart) -> Markup:
    """Draw a chart twice: for a wide screen and for a phone."""
    return Markup("").join(
        Markup(svg(chart, *size).replace("<svg ", f'<svg class="{name}" ', 1))
        for name, size in _SIZES.items()
    )
