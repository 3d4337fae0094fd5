"""LLaVA-CoT: Mllama that writes SUMMARY, CAPTION, REASONING and CONCLUSION.

Light on purpose: torch is imported in model.py only.
"""

from collections.abc import Callable

from mvw_cli import AdapterInfo, hookimpl


@hookimpl
def mvw_register_adapters(register: Callable[[AdapterInfo], None]) -> None:
    register(
        AdapterInfo(
            name="llava-cot",
            target="mvw_llava_cot.model:LlavaCot",
            summary="LLaVA-CoT and other Mllama models, vision in cross-attention",
            checkpoints=("Xkev/Llama-3.2V-11B-cot",),
        )
    )
