"""Hints in error messages are promises: each must be a command that works."""

from __future__ import annotations

import shlex

import click


def parse_hint(hint: str) -> None:
    """Parse a hint with the real command line, without running it."""
    from mvw_cli.cli import cli

    words = shlex.split(hint)
    if words[0] != "mvw":
        assert words[0] in ("pip", "unset", "hf", "cd", "cat", "ls"), (
            f"no command that we know: {hint}"
        )
        return
    command: click.Command = cli
    name, rest, context = "mvw", words[1:], None
    while True:
        try:
            context = command.make_context(name, rest, parent=context)
        except click.exceptions.Exit:
            return  # --help or --version
        if not isinstance(command, click.Group):
            return
        found = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found[1] is not None, hint
        name, command, rest = found[0] or "", found[1], found[2]
