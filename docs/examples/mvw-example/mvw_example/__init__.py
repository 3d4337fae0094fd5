"""An example plugin: an adapter, a withdrawal policy, a profile and a command.

Light on purpose: it is imported on every start of `mvw`, so it names classes and imports none.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mvw_cli import AdapterInfo, PolicyInfo, hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def mvw_register_adapters(register: Callable[[AdapterInfo], None]) -> None:
    register(
        AdapterInfo(
            name="boxed",
            target="mvw_example.model:Boxed",
            summary="models that put their final answer in \\boxed{…}",
        )
    )


@hookimpl
def mvw_register_policies(register: Callable[[PolicyInfo], None]) -> None:
    register(
        PolicyInfo(
            name="sentences",
            target="mvw_example.policy:Sentences",
            summary="withdraw all vision tokens after some sentences",
        )
    )


@hookimpl
def mvw_register_profiles(register: Callable[[Path], None]) -> None:
    register(Path(__file__).parent / "profiles")


@hookimpl
def mvw_register_commands(cli: "click.Group") -> None:
    from mvw_example.boxed import unbox

    cli.add_command(unbox)
