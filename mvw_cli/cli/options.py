"""What options of several commands share: those that every command has, lists, completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mvw_cli import console

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from mvw_cli.plugins.loading import Entry

ARGUMENTS = "mvw.arguments"
"""Key of the command's own words in `Context.meta`."""
CommandT = TypeVar("CommandT", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout instead of a table."
)


def _configure(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and parameter.name:
        console.configure(**{parameter.name: True})


def common_options(command: CommandT) -> CommandT:
    """Add -q, --no-color and --debug to a command; they act at once."""
    flags = (
        (("-q", "--quiet"), "Nothing on stderr but errors."),
        (("--no-color",), "No colours, also with a terminal.  [env var: NO_COLOR]"),
        (("--debug",), "Show the traceback of an error.  [env var: MVW_DEBUG]"),
    )
    for names, help_text in reversed(flags):
        option = click.option(
            *names,
            is_flag=True,
            is_eager=True,  # before --help, which may have to warn of a broken plugin
            expose_value=False,
            callback=_configure,
            help=help_text,
        )
        command = option(command)
    return command


class Listed(click.ParamType[Any, Any]):
    """Values with commas between them, each once, in the order given.

    Args:
        of: what each value is.
        word: a value that is taken as it is.
    """

    def __init__(self, of: click.ParamType[Any, Any], name: str, word: str | None = None) -> None:
        self.name = name
        self._of, self._word = of, word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        if not parts:
            self.fail("it is empty.", param, ctx)
        found = (
            part if part == self._word else self._of.convert(part, param, ctx) for part in parts
        )
        return tuple(dict.fromkeys(found))


def complete_profiles(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of a profile, or else let the shell complete a path."""
    from click.shell_completion import CompletionItem

    from mvw_cli.profiles.store import known_profiles

    found = [CompletionItem(name) for name in known_profiles() if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def complete_adapters(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of an adapter."""
    from mvw_cli.plugins.loading import load_plugins

    return _matching(load_plugins().adapters, incomplete)


def complete_policies(
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


class Remembering(click.Command):
    """A command that keeps the words it was called with, for hints and reports."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)
