"""Plugins of the tests, made to count as installed."""

from __future__ import annotations

import os
from pathlib import Path


def plugin_path(folder: Path, name: str) -> str:
    """Return a PYTHONPATH on which this module of `tests/helpers` counts as an installed plugin."""
    info = folder / f"mvw_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mvw-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mvw]\n{name} = {name}\n")
    return f"{folder}{os.pathsep}{Path(__file__).parent}"
