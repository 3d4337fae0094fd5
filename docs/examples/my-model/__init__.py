"""The adapter `my-model` for mvw.

Light on purpose: it is imported on every start of `mvw`, so it names the class and imports
neither torch nor transformers.
"""

from collections.abc import Callable

from mvw_cli import AdapterInfo, hookimpl


@hookimpl
def mvw_register_adapters(register: Callable[[AdapterInfo], None]) -> None:
    register(
        AdapterInfo(
            name="my-model",
            target="mvw_my_model.model:MyModelAdapter",
            summary="Gemma 3, asked to describe the picture before it answers",
            checkpoints=("google/gemma-3-12b-it",),
        )
    )
