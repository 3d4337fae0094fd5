"""Sentences from Jinja2 templates: plain text, in which each `- ` at a line's start begins one."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from mvw_cli import text

_FILTERS = {name: getattr(text, name) for name in (
    "count", "factor", "millions", "number", "one_line", "percent", "plural", "readable_bytes",
    "scaled", "seconds")
}  # fmt: skip
_START = "\0"
"""Stands for the `- ` of a template, which text that is filled in could hold, too."""


def sentences(package: str, template: str, **values: Any) -> list[str]:
    """Fill in a template of a package, and return its sentences, each once."""
    environment = Environment(
        autoescape=False,  # plain text
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= _FILTERS
    source = files(package).joinpath("templates", template).read_text("utf-8")
    marked = re.sub(r"^- ", _START, source, flags=re.MULTILINE)
    written = environment.from_string(marked).render(**values)
    found = (" ".join(one.split()) for one in written.split(_START))
    return list(dict.fromkeys(one for one in found if one))


def named_sentences(package: str, template: str, **values: Any) -> dict[str, str]:
    """Fill in a template whose sentences begin with a name and a colon."""
    found = (one.partition(": ") for one in sentences(package, template, **values))
    return {name: sentence for name, _, sentence in found}
