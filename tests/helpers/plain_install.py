"""mvw as `pip install .` leaves it: without what extras and tests bring.

Distributions that mvw's own requirements do not lead to can't be imported, and are not found by
whoever looks for them (transformers asks `importlib.util.find_spec`).
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_HEAVY = (
    *("torch", "transformers", "mvw_hf.model", "mvw_hf.problems", "mvw_llava_cot.model"),
    *("mvw_cli.__main__", "mvw_cli.engine.engine", "mvw_cli.cli.infer.run"),
    *("mvw_cli.cli.batch.run", "mvw_cli.batch.workers.worker", "mvw_cli.cli.profile.run"),
    *("mvw_cli.bench.measure.run", "mvw_cli.bench.report.summary", "mvw_cli.cli.show_cost"),
    *("transformers.models.auto.modeling_auto", "transformers.models.auto.processing_auto"),
)
"""Imported once, before any of the processes that run commands is forked."""


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
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    print(json.dumps([str(folder), commands]), file=server.stdin, flush=True)
    answer = server.stdout.readline()
    assert answer.strip(), "the process died, or took too long"
    return [Done(*one) for one in json.loads(answer)]


@cache
def _server() -> subprocess.Popen[str]:
    """Start a process that has imported PyTorch and transformers without the others, and forks."""
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.kill)
    return server


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library writes there is no answer
    hide_others()
    os.environ["MVW_OFFLINE"] = "1"
    from mvw_cli.cli.process import mute_libraries

    mute_libraries()
    for module in _HEAVY:
        import_module(module)
    # `mvw profile` measures the machine for seconds; here it measures as much, on less.
    peaks: Any = import_module("mvw_cli.bench.measure.device_peaks")
    peaks._MOST_BYTES, peaks._SIDES, peaks._SAMPLE_S = {"cpu": 1 << 20}, (16, 32), 1e-4
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            signal.alarm(300)
            _run(*json.loads(line), writer)
            os._exit(0)
        os.close(writer)
        with open(reader) as answer:
            print(answer.read(), file=answers, flush=True)
        os.waitpid(child, 0)


def _run(folder: str, commands: list[list[str]], writer: int) -> None:
    from mvw_cli.__main__ import main

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    os.environ["MVW_HOME"] = os.path.join(folder, "home")
    done = []
    for command in commands:
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            code = main(command)
        done.append((code, out.getvalue(), err.getvalue()))
    with open(writer, "w") as answer:
        json.dump(done, answer)


if __name__ == "__main__":
    _serve()
