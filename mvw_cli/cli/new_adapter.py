"""`mvw new-adapter`: a package with an adapter of one's own, that works at once."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from mvw_cli import console
from mvw_cli.cli.options import common_options


@click.command("new-adapter")
@click.argument("name", help="What to call it: lower-case letters, digits and dashes.")
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Where to put the package; made if it is not there.",
)
@common_options
def new_adapter(name: str, into: Path) -> None:
    """Write a package with an adapter called NAME into a new folder mvw-NAME.

    It can be installed, tested and asked at once; until it is given real weights, a tiny random
    model answers. The path of the folder goes to stdout, what to do next to stderr.

    \b
    Examples:
      mvw new-adapter my-model
      mvw new-adapter my-model --into ~/src
    """
    from mvw_cli.scaffold import check_name, write

    check_name(name)
    folder = write(name, into)
    console.write(str(folder))
    console.note("Next, where mvw is installed:")
    console.note(f"  pip install -e {shlex.quote(f'{folder}[test]')}")
    console.note(f"  pytest {shlex.quote(str(folder))}")
    console.note(f'  mvw infer scene.png "What is this?" --adapter {name}')
