"""Templates to text, and text to a new folder.

A template's path is the path of the file that it becomes, with `.tmpl` behind, so that no tool
takes it for a module of mvw. It does not know which names are allowed.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from mvw_cli import __version__
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.scaffold.names import Names

_SUFFIX = ".tmpl"
_MODULE = "module"  # stands for the import package in the paths of templates


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
    if os.path.lexists(into) and not into.is_dir():
        raise _there(into, "it is no folder", names, f"{into}-adapters")
    try:
        into.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError:
        raise _there(folder, "nothing is overwritten", names, str(into / "new")) from None
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        for path, text in render(names).items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8", newline="\n")
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise _unwritable(folder, error) from None
        raise
    return folder


def _there(path: Path, cause: str, names: Names, elsewhere: str) -> UsageProblem:
    again = shlex.join(["mvw", "new-adapter", names.adapter, "--into", elsewhere])
    return UsageProblem(f"{path} exists already", cause=cause, hint=again)


def _unwritable(folder: Path, error: OSError) -> MvwError:
    where = shlex.quote(str(folder.parent))
    cause = error.strerror or str(error)
    return MvwError(f"{folder} can't be written", cause=cause, hint=f"ls -ld {where}")
