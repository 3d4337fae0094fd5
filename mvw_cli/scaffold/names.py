"""The names of a new adapter, made from one, and whether they are free.

It does not know files or templates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

from mvw_cli.errors import UsageProblem
from mvw_cli.plugins.loading import load_plugins

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Names:
    """What an adapter is called, and all that is called after it."""

    adapter: str

    @property
    def distribution(self) -> str:
        """The name that pip knows; also that of the folder."""
        return f"mvw-{self.adapter}"

    @property
    def module(self) -> str:
        """The import package."""
        return self.distribution.replace("-", "_")

    @property
    def class_(self) -> str:
        """The class; the suffix keeps it apart from keywords and from imported names."""
        return "".join(part.capitalize() for part in self.adapter.split("-")) + "Adapter"


def check_name(name: str) -> Names:
    """Make the names of a new adapter.

    Raises:
        UsageProblem: it is malformed, or an adapter or an installed package has it.
    """
    if not _NAME.fullmatch(name):
        raise UsageProblem(
            f"`{name}` can't be the name of an adapter",
            cause="a name has lower-case letters, digits and single dashes, and begins with a "
            "letter",
            hint=f"mvw new-adapter {_mended(name)}",
        )
    names = Names(name)
    cause = _taken(names)
    if cause is not None:
        raise UsageProblem(
            f"the name `{name}` is taken", cause=cause, hint=f"mvw new-adapter my-{name}"
        )
    return names


def _taken(names: Names) -> str | None:
    """Say who has a name already: two of one name could not both be used."""
    for entry in load_plugins().adapters:
        if entry.info.name == names.adapter:
            plugin = entry.plugin
            return f"{plugin.distribution} {plugin.version} brings an adapter `{names.adapter}`"
    try:
        version = distribution(names.distribution).version
    except PackageNotFoundError:
        pass
    else:
        return f"{names.distribution} {version} is installed"
    if find_spec(names.module) is not None:
        return f"a Python package `{names.module}` is installed"
    return None


def _mended(name: str) -> str:
    """Find the valid name that is nearest."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower())
    return words.lstrip("-0123456789").rstrip("-") or "my-model"
