"""Which architectures are served, and which are refused and why, as the engine's check says.

Served are those that the tests hold against the oracle; refused is what the engine's own check of
a model's class and default configuration says. No weights are involved.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from regions.reference import table as markdown_table

_TESTS = Path(__file__).resolve().parents[2] / "tests" / "helpers" / "families.py"

_NAMES = {
    "llava": "LLaVA",
    "llava_onevision": "LLaVA-OneVision",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "glm4v": "GLM-4.1V",
    "internvl": "InternVL",
    "gemma3": "Gemma 3",
    "paligemma": "PaliGemma",
    "mistral3": "Mistral 3 (Pixtral)",
    "idefics3": "Idefics 3",
    "smolvlm": "SmolVLM",
    "mllama": "Mllama: Llama 3.2 Vision, LLaVA-CoT (cross-attention)",
    "kimi_text_stack": "DeepSeek-V3's text stack below LLaVA (as in Kimi-VL)",
    "qwen3_5": "Qwen3.5, Qwen3.6",
    "qwen3_5_moe": "Qwen3.5 MoE, Qwen3.6 MoE",
    "minicpmv4_6": "MiniCPM-V 4.6",
    "lfm2_vl": "LFM2-VL",
    "lfm3_vl": "LFM3-VL",
    "llama4": "Llama 4",
    "gemma3n": "Gemma 3n",
    "gemma4": "Gemma 4",
}

_REFUSED = {
    "blip-2": ("BLIP-2", "Blip2ForConditionalGeneration"),
    "florence2": ("Florence-2", "Florence2ForConditionalGeneration"),
}


def table() -> str:
    """Write the table of served and refused architectures."""
    rows = []
    for family in _families().FAMILIES:
        name = _NAMES.get(family.name, family.name)
        rows.append((name, f"`{type(family.build()).__name__}`", "served, equal to the oracle"))
    for model_type, (name, kind) in _REFUSED.items():
        rows.append((name, f"`{kind}`", f"refused: {_refusal(model_type, kind)}"))
    return markdown_table(("Architecture", "Class in transformers", "Status"), rows)


def summary() -> str:
    """Write the names alone, as two rows."""
    served = [_NAMES.get(family.name, family.name) for family in _families().FAMILIES]
    for model_type, (_, kind) in _REFUSED.items():
        _refusal(model_type, kind)
    refused = [name for name, _ in _REFUSED.values()]
    rows = [("Served", ", ".join(served)), ("Refused", ", ".join(refused))]
    return markdown_table(("", "Architectures"), rows)


def _families() -> ModuleType:
    spec = importlib.util.spec_from_file_location("families_of_the_tests", _TESTS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


@cache
def _refusal(model_type: str, kind: str) -> str:
    import torch
    import transformers

    from mvw_cli.engine.engine import check_architecture
    from mvw_cli.engine.types import NotExact

    config: Any = transformers.AutoConfig.for_model(model_type)
    with torch.device("meta"):  # shapes without memory
        model = getattr(transformers, kind)(config)
    try:
        check_architecture(model)
    except NotExact as error:
        return str(error)
    raise SystemExit(f"{kind} is listed as refused, and is not")
