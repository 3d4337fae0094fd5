"""What is known of the plugins: each entry point, what it brings, and whether it works.

Plain records. They do not know how plugins are found, loaded or looked up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

import pluggy

from mvw_cli.adapter import AdapterInfo
from mvw_cli.policy import PolicyInfo

OWN = "mvw"
"""The distribution that this package is."""

Status = Literal["ok", "broken", "incompatible"]
InfoT = TypeVar("InfoT", AdapterInfo, PolicyInfo)


@dataclass(slots=True)
class Plugin:
    """One entry point: where it comes from, what it brings, and whether it works."""

    distribution: str
    version: str
    name: str
    module: str
    path: str | None = None
    hooks: tuple[str, ...] = ()
    adapters: list[str] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)
    profiles: list[str] = field(default_factory=list)
    """Folders of YAML profiles."""
    commands: list[str] = field(default_factory=list)
    status: Status = "ok"
    cause: str | None = None
    way_out: str | None = None
    """A shell command that ends the trouble."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[InfoT]):
    """An adapter or policy, and the plugin that brings it."""

    info: InfoT
    plugin: Plugin
    problem: str | None = None
    """Why it can't be used, or None."""

    @property
    def qualified(self) -> str:
        """The name that stays unique when two distributions bring the same one."""
        return f"{self.plugin.distribution}:{self.info.name}"


@dataclass(slots=True)
class Registry:
    """All that the installed plugins bring."""

    plugins: list[Plugin] = field(default_factory=list)
    adapters: list[Entry[AdapterInfo]] = field(default_factory=list)
    policies: list[Entry[PolicyInfo]] = field(default_factory=list)
    profiles: list[tuple[Path, Plugin]] = field(default_factory=list)
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager("mvw"))
