"""`mvw new-adapter` and `mvw new-policy`: a package of one's own, that works at once."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mvw_cli import console
from mvw_cli.cli.options import common_options

if TYPE_CHECKING:
    from mvw_cli.plugins import Kind


def _named(command: Callable[..., None]) -> Callable[..., Any]:
    """Add what both commands take."""
    into = click.option(
        "--into",
        type=click.Path(path_type=Path),
        default=Path(),
        metavar="DIR",
        help="Where to put the package; made if it is not there.",
    )
    name = click.argument("name", help="What to call it: lower-case letters, digits and dashes.")
    return name(into(common_options(command)))


@click.command("new-adapter")
@_named
def new_adapter(name: str, into: Path) -> None:
    """Write a package with an adapter called NAME into a new folder mvw-NAME.

    It can be installed, tested and asked at once; until it is given real weights, a tiny random
    model answers. The path of the folder goes to stdout, what to do next to stderr.

    \b
    Examples:
      mvw new-adapter my-model
      mvw new-adapter my-model --into ~/src
    """
    _write("adapter", name, into)
    console.note(f'  mvw infer scene.png "What is this?" --adapter {name}')


@click.command("new-policy")
@_named
def new_policy(name: str, into: Path) -> None:
    """Write a package with a withdrawal policy called NAME into a new folder mvw-NAME.

    It can be installed, tested and used at once. The path of the folder goes to stdout, what to do
    next to stderr.

    \b
    Examples:
      mvw new-policy my-policy
      mvw new-policy my-policy --into ~/src
    """
    _write("policy", name, into)
    console.note("  mvw samples samples")
    question = '"How many red circles are there?"'
    console.note(f"  mvw infer samples/scene-0001.png {question} --policy {name}:tokens=20")


def _write(kind: Kind, name: str, into: Path) -> None:
    from mvw_cli.scaffold import check_name, write

    check_name(kind, name)
    folder = write(kind, name, into)
    console.write(str(folder))
    console.note("Next, where mvw is installed:")
    console.note(f"  pip install -e {shlex.quote(f'{folder}[test]')}")
    console.note(f"  pytest {shlex.quote(str(folder))}")
