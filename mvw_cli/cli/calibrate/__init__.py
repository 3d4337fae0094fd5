"""`mvw calibrate`: the group. Each method's search is a command in a module of its own."""

from __future__ import annotations

from importlib import import_module

import click

from mvw_cli.cli.options import common_options

_METHODS: dict[str, str] = {
    "vtw": "mvw_cli.cli.calibrate.vtw:vtw",
    "mvw": "mvw_cli.cli.calibrate.mvw:mvw",
    "mass": "mvw_cli.cli.calibrate.mass:mass",
    "dyvte": "mvw_cli.cli.calibrate.dyvte:dyvte",
}
"""By name, the module and attribute of the command: imported when it is looked up."""


class Methods(click.Group):
    """A group that imports a command when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_METHODS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _METHODS:
            return None
        module, _, attribute = _METHODS[cmd_name].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=Methods, short_help="Find a policy's settings on your own images.")
@common_options
def calibrate() -> None:
    """Find a policy's settings on your own images, and write the profile that uses them."""
