"""Commands that keep the words they were called with, so that hints and reports can repeat them."""

from __future__ import annotations

import click

ARGUMENTS = "mvw.arguments"
"""Key of the command's own words in `Context.meta`."""


class Remembering(click.Command):
    """A command that keeps its words."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)
