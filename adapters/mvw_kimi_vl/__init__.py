"""Kimi-VL: MoonViT, MLA and a mixture of experts, from a checkpoint as it lies on the hub.

Light on purpose: torch is imported with the class only.
"""

from collections.abc import Callable
from contextlib import suppress

from mvw_cli import AdapterInfo, hookimpl

TOKENIZER_MODE = "kimi_vl"
"""vLLM's name for the tokenizer of this package."""


@hookimpl
def mvw_register_adapters(register: Callable[[AdapterInfo], None]) -> None:
    register(
        AdapterInfo(
            name="kimi-k2.5",
            target="mvw_kimi_vl.model:KimiK25",
            summary="Kimi-K2.5, its experts unpacked as they are read, without remote code",
            checkpoints=("moonshotai/Kimi-K2.5",),
        )
    )
    register(
        AdapterInfo(
            name="kimi-vl",
            target="mvw_kimi_vl.model:KimiVL",
            summary="Kimi-VL, Instruct and Thinking, without remote code",
            checkpoints=("moonshotai/Kimi-VL-A3B-Thinking-2506",),
        )
    )


def offer_to_vllm() -> None:
    """Let vLLM have Kimi-VL without remote code: `mvw_kimi_vl.vllm`, imported when it is used.

    vLLM calls this in each of its processes (entry point `vllm.general_plugins`).
    """
    with suppress(ImportError):  # of another vLLM, where Kimi-VL needs its remote code
        from vllm import ModelRegistry
        from vllm.renderers.registry import RENDERER_REGISTRY
        from vllm.tokenizers.registry import TokenizerRegistry

        if TOKENIZER_MODE not in TokenizerRegistry.tokenizers:
            TokenizerRegistry.register(TOKENIZER_MODE, "mvw_kimi_vl.vllm", "Tokenizer")
            RENDERER_REGISTRY.register(TOKENIZER_MODE, "vllm.renderers.hf", "HfRenderer")
            name = "KimiVLForConditionalGeneration"
            ModelRegistry.register_model(name, f"mvw_kimi_vl.vllm:{name}")
