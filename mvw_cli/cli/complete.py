"""Shell completion of names that are only known at run time. Reads file names, no YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from mvw_cli.plugins.loading import Entry


def profiles(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of a profile, or else let the shell complete a path."""
    from click.shell_completion import CompletionItem

    from mvw_cli.profiles.store import known_profiles

    found = [CompletionItem(name) for name in known_profiles() if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def adapters(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of an adapter."""
    from mvw_cli.plugins.loading import load_plugins

    return _matching(load_plugins().adapters, incomplete)


def policies(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of a withdrawal policy, also after others and a `+`."""
    from mvw_cli.plugins.loading import load_plugins

    before, plus, last = incomplete.rpartition("+")
    return _matching(load_plugins().policies, last, before + plus)


def _matching(
    entries: Sequence[Entry[Any]], incomplete: str, before: str = ""
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [
        CompletionItem(before + entry.info.name, help=entry.info.summary)
        for entry in entries
        if entry.info.name.startswith(incomplete)
    ]
