"""mvw as `pip install .` leaves it: without what extras and tests bring.

Distributions that mvw's own requirements do not lead to can't be imported, and are not found by
whoever looks for them (transformers asks `importlib.util.find_spec`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from io import StringIO
from pathlib import Path
from types import ModuleType

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def required(name: str = "mvw") -> set[str]:
    """List the distributions that installing one brings, itself included."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        found.add(name)
        wanted = map(Requirement, lines)
        # Extras of a requirement are followed with all that it may bring: none hides too much.
        waiting += [one.name for one in wanted if _applies(one)]
    return found


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


class Installed(PathFinder):
    """Finds what is installed, but for the modules that are hidden."""

    hidden: frozenset[str] = frozenset()

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in cls.hidden:
            return None
        return PathFinder.find_spec(fullname, path, target)


def hide_others() -> None:
    """Hide every distribution that mvw does not require."""
    kept = required()
    Installed.hidden = frozenset(
        module
        for module, names in packages_distributions().items()
        if kept.isdisjoint(map(canonicalize_name, names))
    )
    sys.meta_path[sys.meta_path.index(PathFinder)] = Installed


@dataclass(frozen=True)
class Done:
    """What one command came to."""

    code: int
    out: str
    err: str


def run_plain(folder: Path, *commands: Sequence[str]) -> list[Done]:
    """Run commands of mvw, one after the other, in a process of their own without the others."""
    process = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "MVW_HOME": str(folder / "home"), "MVW_OFFLINE": "1"},
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return [Done(*one) for one in json.loads(process.stdout)]


def _main() -> None:
    hide_others()
    from mvw_cli.__main__ import main

    done = []
    for command in json.load(sys.stdin):
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            code = main(command)
        done.append((code, out.getvalue(), err.getvalue()))
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    _main()
