"""What `mvw new-adapter` and `mvw new-policy` write: packages, from the templates beside this.

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
from mvw_cli.plugins import Kind, load_plugins

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TEMPLATES = Path(__file__).parent / "templates"
_A: dict[Kind, str] = {"adapter": "an", "policy": "a"}
_EXAMPLES: dict[Kind, str] = {"adapter": "my-model", "policy": "my-policy"}


def names_of(kind: Kind, name: str) -> dict[str, str]:
    """Make all that is called after an adapter or policy, by what it is in the templates."""
    return {
        "kind": kind,
        "article": _A[kind].capitalize(),
        "name": name,
        "distribution": f"mvw-{name}",  # also the name of the folder
        "module": f"mvw-{name}".replace("-", "_"),
        # The suffix keeps it apart from keywords and from imported names.
        "class_": "".join(map(str.capitalize, [*name.split("-"), kind])),
        "mvw": __version__,
    }


def check_name(kind: Kind, name: str) -> None:
    """Refuse what can't be the name of a new adapter or policy.

    Raises:
        UsageProblem: it is malformed, or another one or an installed package has it.
    """
    if not _NAME.fullmatch(name):
        nearest = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789").rstrip("-")
        raise UsageProblem(
            f"`{name}` can't be the name of {_A[kind]} {kind}",
            cause="a name has lower-case letters, digits and single dashes, and begins with a "
            "letter",
            hint=f"mvw new-{kind} {nearest or _EXAMPLES[kind]}",
        )
    module = names_of(kind, name)["module"]
    cause = f"a Python package `{module}` is installed" if find_spec(module) else None
    registry = load_plugins()
    for entry in registry.adapters if kind == "adapter" else registry.policies:
        if entry.info.name == name:
            plugin = entry.plugin
            cause = f"{plugin.distribution} {plugin.version} brings {_A[kind]} {kind} `{name}`"
    if cause is not None:  # two of one name could not both be used
        hint = f"mvw new-{kind} my-{name}"
        raise UsageProblem(f"the name `{name}` is taken", cause=cause, hint=hint)


def render(kind: Kind, name: str) -> dict[str, str]:
    """Make the text of every file of the package, by its path inside it."""
    names, texts = names_of(kind, name), {}
    for folder in (_TEMPLATES / "both", _TEMPLATES / kind):
        for file in sorted(folder.rglob("*.tmpl")):
            path = file.relative_to(folder).with_suffix("").as_posix()
            text = Template(file.read_text(encoding="utf-8")).substitute(names)
            texts[path.replace("module/", names["module"] + "/")] = text
    return texts


def write(kind: Kind, name: str, into: Path) -> Path:
    """Write the package into a new folder `mvw-NAME` in `into`, whole or not at all.

    Raises:
        UsageProblem: something of that name is there already.
        MvwError: the folder can't be made or written.
    """
    folder = into / names_of(kind, name)["distribution"]
    if os.path.lexists(folder):
        raise UsageProblem(
            f"{folder} exists already",
            cause="nothing is overwritten",
            hint=shlex.join(["mvw", f"new-{kind}", name, "--into", str(into / "new")]),
        )
    try:
        folder.mkdir(parents=True)
        try:
            for path, text in render(kind, name).items():
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
