"""`mvw compare`: two reports of `mvw profile` side by side, if they can be compared."""

from __future__ import annotations

import click

from mvw_cli import console
from mvw_cli.cli.options import common_options, json_option


@click.command(short_help="Set two reports of `mvw profile` side by side.")
@click.argument("a", metavar="A", help="A report that `mvw profile -o A` wrote, as JSON.")
@click.argument("b", metavar="B", help="Another one; ratios above 1 say that it is faster.")
@json_option
@click.option("--html", metavar="FILE", help="Write one page that opens offline.")
@click.option("-v", "--verbose", is_flag=True, help="Print every table, not one screen.")
@common_options
def compare(a: str, b: str, as_json: bool, html: str | None, verbose: bool) -> None:
    """Set two reports of `mvw profile` side by side.

    Both have to be of the same device, model, weights, dtype, mode, length, prompt and number of
    vision tokens, with an arm at a batch size in common; otherwise the command says what differs
    and ends with code 2. Versions, attention and threads may differ, and are named if they do.

    \b
    Examples:
      mvw compare before.json after.json
      mvw compare sdpa.json flash.json --json
    """
    from mvw_cli.bench.documents import read_report, showing
    from mvw_cli.bench.report.comparison import sections, summary
    from mvw_cli.bench.verdict.compare import compare as set_side_by_side
    from mvw_cli.bench.verdict.compare import to_dict
    from mvw_cli.files import check_not_input, check_writable
    from mvw_cli.render import terminal

    if html is not None:
        check_writable(html)
        check_not_input([html], [a, b])
    first, second = read_report(a), read_report(b)
    title = f"{a} and {b}"
    with showing(a, b):
        side = set_side_by_side(first, second, names=(a, b))
        if html is not None:
            from mvw_cli.console import deliver
            from mvw_cli.render.html import page

            footer = f"Made by mvw {first.environment.mvw} and {second.environment.mvw}."
            deliver(page(title, sections(side), footer=footer), html)
        if as_json:
            console.write_json(to_dict(side))
        elif verbose:
            terminal.show(title, sections(side))
        else:
            terminal.show(title, summary(side, terminal.width()))
