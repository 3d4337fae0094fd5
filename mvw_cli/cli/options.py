"""Options that every command has. They act at once and reach no command as parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from mvw_cli import console

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout instead of a table."
)


def _configure(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and parameter.name:
        console.configure(**{parameter.name: True})


def common_options(command: CommandT) -> CommandT:
    """Add -q, --no-color, --debug and -h to a command."""
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
