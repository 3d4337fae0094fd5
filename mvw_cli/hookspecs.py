"""The hooks that a plugin may implement. Entry-point group: `mvw`.

Hook functions may take fewer arguments than are listed here; new ones are only ever added."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pluggy

from mvw_cli.adapter import AdapterInfo
from mvw_cli.policy import PolicyInfo

hookspec = pluggy.HookspecMarker("mvw")
hookimpl = pluggy.HookimplMarker("mvw")


@hookspec
def mvw_register_adapters(register: Callable[[AdapterInfo], None]) -> None:
    """Register adapters: call `register(AdapterInfo(...))` once for each."""


@hookspec
def mvw_register_policies(register: Callable[[PolicyInfo], None]) -> None:
    """Register withdrawal policies: call `register(PolicyInfo(...))` once for each."""


@hookspec
def mvw_register_profiles(register: Callable[[Path], None]) -> None:
    """Register folders of YAML profiles: call `register(path)` once for each."""


@hookspec
def mvw_register_commands(cli: click.Group) -> None:
    """Add commands to the `mvw` group with `cli.add_command(...)` or `@cli.command()`."""
