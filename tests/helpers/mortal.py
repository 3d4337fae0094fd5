"""A plugin for the tests of executors: the tiny model, in workers that die when told to."""

from collections.abc import Callable

from mvw_cli import AdapterInfo, hookimpl


@hookimpl
def mvw_register_adapters(register: Callable[[AdapterInfo], None]) -> None:
    register(
        AdapterInfo(
            name="mortal",
            target="mortal_model:Mortal",
            summary="for tests",
            checkpoints=("none",),
        )
    )
