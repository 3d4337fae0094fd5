"""Any Hugging Face vision-language model. Light on purpose: torch is imported in model.py."""

from collections.abc import Callable

from mvw_cli import AdapterInfo, hookimpl


@hookimpl
def mvw_register_adapters(register: Callable[[AdapterInfo], None]) -> None:
    register(
        AdapterInfo(
            name="hf",
            target="mvw_hf.model:HuggingFace",
            summary="any decoder-only image-text-to-text model of transformers",
        )
    )
