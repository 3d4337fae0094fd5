"""Does a module import without the heavy libraries? Asked in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "PIL", "numpy", "rich", "yaml", "pydantic")

_PROBE = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*sorted(set(sys.argv[2:]) & set(sys.modules)))
"""


def heavy_imports(module: str) -> list[str]:
    """List the heavy libraries that importing a module brings in.

    Raises:
        AssertionError: it can't be imported.
    """
    # The same search path: a plugin under test need not be installed yet.
    path = f"import sys; sys.path[:] = {sys.path!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", path + _PROBE, module, *HEAVY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"`import {module}` fails:\n{done.stderr}"
    return done.stdout.split()
