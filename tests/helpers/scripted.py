"""A plugin for these tests: a model that writes a given text, at a given pace."""

from collections.abc import Callable

from mvw_cli import AdapterInfo, hookimpl


@hookimpl
def mvw_register_adapters(register: Callable[[AdapterInfo], None]) -> None:
    register(
        AdapterInfo(
            name="scripted",
            target="scripted_model:Scripted",
            summary="for tests",
            checkpoints=("none",),
        )
    )
