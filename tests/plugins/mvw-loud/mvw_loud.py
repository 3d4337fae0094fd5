"""A plugin that talks, leaves, and brings a command that can't be listed."""

import sys

import click

from mvw_cli import hookimpl

sys.stdout.write("thank you for choosing mvw-loud\n")


class Unlisted(click.Command):
    def get_short_help_str(self, limit=45):
        sys.exit("goodbye")


@hookimpl
def mvw_register_commands(cli):
    cli.add_command(Unlisted("unlisted"))
