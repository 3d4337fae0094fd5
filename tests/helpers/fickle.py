"""A plugin for these tests: a tiny model that fails in the ways that machines do."""

from collections.abc import Callable

from mvw_cli import AdapterInfo, hookimpl


@hookimpl
def mvw_register_adapters(register: Callable[[AdapterInfo], None]) -> None:
    register(
        AdapterInfo(
            name="fickle",
            target="fickle_model:Fickle",
            summary="for tests",
            checkpoints=("none",),
        )
    )
