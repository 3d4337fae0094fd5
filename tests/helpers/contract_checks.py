"""Runs every check of a contract, and tells which ones fail."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest

from mvw_cli import Decide, Withdraw, WithdrawalPolicy
from mvw_cli.testing import PolicyContract


def failures(contract: Any, *, without: str = "") -> set[str]:
    """Run every check of a contract, or all but one; return those that fail."""
    failed = set()
    for name in dir(contract):
        if name.startswith("test_") and name != f"test_{without}":
            check = getattr(contract, name)
            try:
                with TemporaryDirectory() as folder:
                    takes = signature(check).parameters
                    check(**({"tmp_path": Path(folder)} if "tmp_path" in takes else {}))
            except pytest.skip.Exception:
                pass
            except (Exception, pytest.fail.Exception):
                failed.add(name.removeprefix("test_"))
    return failed


def policy_failures(policy: WithdrawalPolicy) -> set[str]:
    # The policies of this file share its module, which is a test and as such not light.
    contract = type("Contract", (PolicyContract,), {"policies": (policy,)})()
    return failures(contract, without="importing_it_is_light")


@dataclass(frozen=True)
class Simple(WithdrawalPolicy):
    """Right, and the base of the wrong ones."""

    name: ClassVar[str] = "simple"

    def begin(self) -> Decide:
        return lambda view: Withdraw() if view.step == 3 else None

    def describe(self) -> str:
        return "after 3 tokens"
