"""Every adapter that comes with mvw holds the contract."""

from __future__ import annotations

from pathlib import Path

from kimi_checkpoint import write_checkpoint

from mvw_cli.testing import AdapterContract


class TestHuggingFace(AdapterContract):
    adapter = "hf"


class TestShapes(AdapterContract):
    adapter = "shapes"


class TestLlavaCot(AdapterContract):
    adapter = "llava-cot"


class TestKimiVL(AdapterContract):
    adapter = "kimi-vl"

    def write_checkpoint(self, folder: Path) -> None:
        write_checkpoint(folder)
