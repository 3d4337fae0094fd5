"""Small policies as somebody else's package would bring them, found through its metadata."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvw_cli.plugins import load_plugins

_CODE = '''
from dataclasses import dataclass, field
from typing import ClassVar

from mvw_cli import PolicyInfo, WithdrawalPolicy, hookimpl


@dataclass(frozen=True)
class Layered(WithdrawalPolicy):
    """All vision goes at a layer of the prefill."""

    name: ClassVar[str] = "layered"

    layer: int = field(metadata={"description": "First layer without vision."})
    tags: tuple[str, ...] = ()
    share: float = 1.0

    def describe(self):
        return f"from layer {self.layer}"


@dataclass(frozen=True)
class Deeper(Layered):
    """The same under another name, for fields that two policies have."""

    name: ClassVar[str] = "deeper"


@dataclass(frozen=True)
class Again(WithdrawalPolicy):
    """A modifier: alone it makes no sense."""

    name: ClassVar[str] = "again"

    steps: int = 8
    on: str = "wait"

    def conflict(self, before):
        return super().conflict(before) or (None if before else "again has nothing to bring back")

    def describe(self):
        return f"back for {self.steps}"


@hookimpl
def mvw_register_policies(register):
    for name in ("layered", "deeper", "again"):
        register(PolicyInfo(name, f"mvw_fake:{name.capitalize()}", f"for tests: {name}"))
'''


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the package `mvw-fake` on this process's path."""
    metadata = folder / "mvw_fake-1.2.dist-info"
    metadata.mkdir(parents=True)
    (folder / "mvw_fake.py").write_text(_CODE, encoding="utf-8")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mvw-fake\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text("[mvw]\nfake = mvw_fake\n")
    monkeypatch.syspath_prepend(str(folder))
    load_plugins.cache_clear()
