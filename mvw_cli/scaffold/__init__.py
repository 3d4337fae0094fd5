"""What `mvw new-adapter` writes: a package with an adapter, from the templates beside this file.

A template's path is the path of the file that it becomes, with `.tmpl` behind, so that no tool
takes it for a module of mvw.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from string import Template

from mvw_cli import __version__
from mvw_cli.environment import installed_version
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.plugins import load_plugins

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SUFFIX = ".tmpl"
_MODULE = "module"  # stands for the import package in the paths of templates


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
        nearest = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789").rstrip("-")
        raise UsageProblem(
            f"`{name}` can't be the name of an adapter",
            cause="a name has lower-case letters, digits and single dashes, and begins with a "
            "letter",
            hint=f"mvw new-adapter {nearest or 'my-model'}",
        )
    names = Names(name)
    cause = _taken(names)
    if cause is not None:
        raise UsageProblem(
            f"the name `{name}` is taken", cause=cause, hint=f"mvw new-adapter my-{name}"
        )
    return names


def _taken(names: Names) -> str | None:
    """Return who has a name already: two of one name could not both be used."""
    for entry in load_plugins().adapters:
        if entry.info.name == names.adapter:
            plugin = entry.plugin
            return f"{plugin.distribution} {plugin.version} brings an adapter `{names.adapter}`"
    version = installed_version(names.distribution)
    if version is not None:
        return f"{names.distribution} {version} is installed"
    if find_spec(names.module) is not None:
        return f"a Python package `{names.module}` is installed"
    return None


def render(names: Names) -> dict[str, str]:
    """Make the text of every file of the package, by its path inside it."""
    values = {
        "adapter": names.adapter,
        "distribution": names.distribution,
        "module": names.module,
        "class_": names.class_,
        "mvw": __version__,
    }
    texts = {}
    for path, text in _templates(files(__package__).joinpath("templates")):
        parts = [names.module if part == _MODULE else part for part in path.split("/")]
        texts["/".join(parts).removesuffix(_SUFFIX)] = Template(text).substitute(values)
    return texts


def _templates(folder: Traversable, above: str = "") -> Iterator[tuple[str, str]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _templates(entry, f"{above}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            yield above + entry.name, entry.read_text(encoding="utf-8")


def write(names: Names, into: Path) -> Path:
    """Write the package into a new folder `mvw-NAME` in `into`, whole or not at all.

    Raises:
        UsageProblem: something of that name is there already.
        MvwError: the folder can't be made or written.
    """
    folder = into / names.distribution
    is_there = folder if into.is_dir() else into
    if os.path.lexists(is_there):
        elsewhere = into / "new" if into.is_dir() else f"{into}-adapters"
        raise UsageProblem(
            f"{is_there} exists already",
            cause="nothing is overwritten" if into.is_dir() else "it is no folder",
            hint=shlex.join(["mvw", "new-adapter", names.adapter, "--into", str(elsewhere)]),
        )
    try:
        folder.mkdir(parents=True)
        try:
            for path, text in render(names).items():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8", newline="\n")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        raise MvwError(
            f"{folder} can't be written",
            cause=error.strerror or str(error),
            hint=f"ls -ld {shlex.quote(str(into))}",
        ) from None
    return folder
