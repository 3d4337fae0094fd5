"""Kimi-VL: MoonViT, MLA and a mixture of experts, from a checkpoint as it lies on the hub.

Light on purpose: torch is imported with the class only.
"""

from collections.abc import Callable

from mvw_cli import AdapterInfo, hookimpl


@hookimpl
def mvw_register_adapters(register: Callable[[AdapterInfo], None]) -> None:
    register(
        AdapterInfo(
            name="kimi-vl",
            target="mvw_kimi_vl.model:KimiVL",
            summary="Kimi-VL, Instruct and Thinking, without remote code",
            checkpoints=("moonshotai/Kimi-VL-A3B-Thinking-2506",),
        )
    )
