"""`mvw compare`: two reports of `mvw profile` side by side, if they can be compared."""

from __future__ import annotations

import click

from mvw_cli import console
from mvw_cli.cli.options import common_options, json_option


@click.command(short_help="Set two reports of `mvw profile` side by side.")
@click.argument("a", metavar="A", help="A report that `mvw profile -o A` wrote, as JSON.")
@click.argument("b", metavar="B", help="Another one; ratios above 1 say that it is faster.")
@json_option
@common_options
def compare(a: str, b: str, as_json: bool) -> None:
    """Set two reports of `mvw profile` side by side.

    Both have to be of the same device, model, weights, dtype, mode, length, prompt and number of
    vision tokens, with a batch size and an arm in common; otherwise the command says what differs
    and ends with code 2. Versions, attention and threads may differ, and are named if they do.

    \b
    Examples:
      mvw compare before.json after.json
      mvw compare sdpa.json flash.json --json
    """
    from mvw_cli.bench.documents import read_report
    from mvw_cli.bench.verdict.compare import compare as set_side_by_side
    from mvw_cli.bench.verdict.compare import to_dict

    side = set_side_by_side(read_report(a), read_report(b), names=(a, b))
    if as_json:
        console.write_json(to_dict(side))
        return
    from mvw_cli.bench.report.comparison import sections
    from mvw_cli.render.terminal import show

    show(f"{a} and {b}", sections(side))
