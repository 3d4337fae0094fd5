"""Jinja2 templates of a package: markup, in which all text is escaped, and plain sentences."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mvw_cli import text

_FILTERS = {name: getattr(text, name) for name in (
    "count", "factor", "millions", "milliseconds", "number", "one_line", "percent", "plural",
    "readable_bytes", "scaled", "seconds")
}  # fmt: skip
_START = "\0"
"""Stands for the `- ` of a template, which text that is filled in could hold, too."""


def rendered(package: str, template: str, **values: Any) -> Markup:
    """Fill in a template for HTML or SVG; it may extend those of this package."""
    return Markup(_environment(package, markup=True).get_template(template).render(**values))


def resource(package: str, name: str) -> Markup:
    """Read a file of a package's templates that is part of a page as it is."""
    return Markup(files(package).joinpath("templates", name).read_text("utf-8"))


def sentences(package: str, template: str, **values: Any) -> list[str]:
    """Fill in a template whose sentences begin with `- ` at a line's start; return each once."""
    marked = re.sub(r"^- ", _START, resource(package, template), flags=re.MULTILINE)
    written = _environment(package, markup=False).from_string(marked).render(**values)
    found = (" ".join(one.split()) for one in written.split(_START))
    return list(dict.fromkeys(one for one in found if one))


def named_sentences(package: str, template: str, **values: Any) -> dict[str, str]:
    """Fill in a template whose sentences begin with a name and a colon."""
    found = (one.partition(": ") for one in sentences(package, template, **values))
    return {name: sentence for name, _, sentence in found}


@cache
def _environment(package: str, *, markup: bool) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("mvw_cli.render")]),
        autoescape=markup,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_visible if markup else None,
    )
    environment.filters |= _FILTERS | {"unbroken": _unbroken}
    return environment


def _unbroken(text: str) -> str:
    """Keep a number and its sign on one line."""
    return text.replace(" ×", "\u00a0×").replace(" %", "\u00a0%")


def _visible(value: Any) -> Any:
    """Make control characters in text visible; what is markup already stays as it is."""
    return text.printable(value) if type(value) is str else value
