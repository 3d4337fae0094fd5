"""The `mvw` group: its own commands by name, those of plugins when they are asked for.

Each command lives in a module of its own, imported when it is looked up. Plugins are loaded only
for the group's help and for a name that is not built in.
"""

from __future__ import annotations

from importlib import import_module

import click

from mvw_cli import __version__
from mvw_cli.cli.options import common_options
from mvw_cli.text import printable

_OWN = {
    "infer": "mvw_cli.cli.infer:infer",
    "batch": "mvw_cli.cli.batch:batch",
    "serve": "mvw_cli.cli.serve:serve",
    "profile": "mvw_cli.cli.profile:profile",
    "eval": "mvw_cli.cli.eval:eval_",
    "calibrate": "mvw_cli.cli.calibrate:calibrate",
    "merge": "mvw_cli.cli.merge:merge",
    "compare": "mvw_cli.cli.compare:compare",
    "list": "mvw_cli.cli.list:list_",
    "show": "mvw_cli.cli.show:show",
    "doctor": "mvw_cli.cli.doctor:doctor",
    "plugins": "mvw_cli.cli.list:plugins",
    "new-adapter": "mvw_cli.cli.new:new_adapter",
    "new-policy": "mvw_cli.cli.new:new_policy",
}

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_SHORT = """\
mvw runs reasoning vision-language models and takes their vision tokens away once read.

  mvw infer scene.png "How many red circles are there?"
  mvw batch ./images "How many red circles are there?"
  mvw list profiles

mvw --help shows all commands, mvw COMMAND --help one of them.\
"""


class Commands(click.Group):
    """A group that imports a command when it is needed."""

    _asked_plugins = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        for name in _OWN:
            self.get_command(ctx, name)
        if not self._asked_plugins:
            from mvw_cli.plugins import plugin_commands

            self._asked_plugins = True
            for name, command in plugin_commands(taken=_OWN).items():
                self.add_command(command, name)
        return [*_OWN, *sorted(name for name in self.commands if name not in _OWN)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands:
            if cmd_name in _OWN:
                module, _, attribute = _OWN[cmd_name].partition(":")
                self.add_command(getattr(import_module(module), attribute), cmd_name)
            else:
                # It may come from a plugin; if not, all the names serve to suggest one.
                self.list_commands(ctx)
        return self.commands.get(cmd_name)

    def get_help(self, ctx: click.Context) -> str:
        return printable(super().get_help(ctx))  # plugins' names and words are in it


@click.group(cls=Commands, context_settings=CONTEXT, invoke_without_command=True)
@click.version_option(__version__, message="%(prog)s %(version)s")
@common_options
@click.pass_context
def cli(context: click.Context) -> None:
    """Run reasoning vision-language models and take their vision tokens away once read.

    \b
    Examples:
      mvw infer scene.png "How many red circles are there?"
      mvw infer photo.jpg "What is on the table?" --model Qwen/Qwen2.5-VL-7B-Instruct --m 16
      mvw list profiles
    """
    if context.invoked_subcommand is None:
        click.echo(_SHORT)
