"""What `mvw new-adapter` writes: a package with an adapter, from the templates beside this file.

A template's path is the path of the file that it becomes, with `.tmpl` behind, so that no tool
takes it for a module of mvw; `module` stands for the name of the import package.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path
from string import Template

from mvw_cli import __version__
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.plugins import load_plugins

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TEMPLATES = Path(__file__).parent / "templates"


def names_of(adapter: str) -> dict[str, str]:
    """Make all that is called after an adapter, by what it is in the templates."""
    return {
        "adapter": adapter,
        "distribution": f"mvw-{adapter}",  # also the name of the folder
        "module": f"mvw-{adapter}".replace("-", "_"),
        # The suffix keeps it apart from keywords and from imported names.
        "class_": "".join(part.capitalize() for part in adapter.split("-")) + "Adapter",
        "mvw": __version__,
    }


def check_name(adapter: str) -> None:
    """Refuse what can't be the name of a new adapter.

    Raises:
        UsageProblem: it is malformed, or an adapter or an installed package has it.
    """
    if not _NAME.fullmatch(adapter):
        nearest = re.sub(r"[^a-z0-9]+", "-", adapter.lower()).lstrip("-0123456789").rstrip("-")
        raise UsageProblem(
            f"`{adapter}` can't be the name of an adapter",
            cause="a name has lower-case letters, digits and single dashes, and begins with a "
            "letter",
            hint=f"mvw new-adapter {nearest or 'my-model'}",
        )
    module = names_of(adapter)["module"]
    cause = f"a Python package `{module}` is installed" if find_spec(module) else None
    for entry in load_plugins().adapters:
        if entry.info.name == adapter:
            plugin = entry.plugin
            cause = f"{plugin.distribution} {plugin.version} brings an adapter `{adapter}`"
    if cause is not None:  # two of one name could not both be used
        hint = f"mvw new-adapter my-{adapter}"
        raise UsageProblem(f"the name `{adapter}` is taken", cause=cause, hint=hint)


def render(adapter: str) -> dict[str, str]:
    """Make the text of every file of the package, by its path inside it."""
    names, texts = names_of(adapter), {}
    for file in sorted(_TEMPLATES.rglob("*.tmpl")):
        path = file.relative_to(_TEMPLATES).with_suffix("").as_posix()
        text = Template(file.read_text(encoding="utf-8")).substitute(names)
        texts[path.replace("module/", names["module"] + "/")] = text
    return texts


def write(adapter: str, into: Path) -> Path:
    """Write the package into a new folder `mvw-NAME` in `into`, whole or not at all.

    Raises:
        UsageProblem: something of that name is there already.
        MvwError: the folder can't be made or written.
    """
    folder = into / names_of(adapter)["distribution"]
    if os.path.lexists(folder):
        raise UsageProblem(
            f"{folder} exists already",
            cause="nothing is overwritten",
            hint=shlex.join(["mvw", "new-adapter", adapter, "--into", str(into / "new")]),
        )
    try:
        folder.mkdir(parents=True)
        try:
            for path, text in render(adapter).items():
                target = folder / path
                target.parent.mkdir(exist_ok=True)
                target.write_text(text, encoding="utf-8", newline="\n")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        cause, hint = error.strerror or str(error), f"ls -ld {shlex.quote(str(into))}"
        raise MvwError(f"{folder} can't be written", cause=cause, hint=hint) from None
    return folder
