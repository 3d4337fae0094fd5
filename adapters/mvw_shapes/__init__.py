"""The embedded model `shapes`: a small real VLM, trained by this project on scenes it draws.

Light on purpose: torch is imported in model.py only.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from mvw_cli import AdapterInfo, hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def mvw_register_adapters(register: Callable[[AdapterInfo], None]) -> None:
    register(
        AdapterInfo(
            name="shapes",
            target="mvw_shapes.model:Shapes",
            summary="the embedded model: coloured shapes on a grid, nothing else",
            checkpoints=("embedded",),
        )
    )


@hookimpl
def mvw_register_commands(cli: "click.Group") -> None:
    from mvw_shapes.samples import samples

    cli.add_command(samples)
