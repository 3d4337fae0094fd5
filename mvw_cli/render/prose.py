"""Sentences from Jinja2 templates: plain text, in which each `- ` at a line's start begins one."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mvw_cli import text

_FILTERS = {name: getattr(text, name) for name in (
    "count", "factor", "one_line", "percent", "percents", "plural", "readable_bytes", "seconds")
}  # fmt: skip


def sentences(package: str, template: str, **values: Any) -> list[str]:
    """Fill in a template of a package, and return its sentences, each once."""
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=False,  # plain text
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= _FILTERS
    written = environment.get_template(template).render(**values)
    found = (" ".join(one.split()) for one in re.split(r"^- ", written, flags=re.MULTILINE))
    return list(dict.fromkeys(one for one in found if one))
