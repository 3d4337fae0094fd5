"""Every adapter that comes with mvw holds the contract, and so do its policies."""

from __future__ import annotations

from pathlib import Path

from kimi_checkpoint import write_checkpoint

from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.testing import AdapterContract, PolicyContract


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


class TestPolicies(PolicyContract):
    policies = (Mvw(m=1), Mvw(m=5), Mvw(until="</CAPTION>"), Mvw(m=6, until=" two"), NoWithdrawal())
