"""Which architectures are served, and which are refused and why.

Some the tests know one by one; of all classes it is what `benchmarks/sweep.py` has found.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from regions.reference import table as markdown_table

_TESTS = Path(__file__).resolve().parents[2] / "tests" / "helpers" / "families.py"

_RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "families.json"

_NAMES = {
    "llava": "LLaVA",
    "llava_onevision": "LLaVA-OneVision",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "glm4v": "GLM-4.1V",
    "glm4v_moe": "GLM-4.5V, GLM-4.6V",
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
    "molmo2": "Molmo 2",
}

_SUFFIXES = ("ForConditionalGeneration", "ForCausalLM", "Model")


def table() -> str:
    """Write the table of the families that the tests know one by one."""
    rows = [
        (_NAMES.get(family.name, family.name), f"`{type(family.build()).__name__}`")
        for family in _families().FAMILIES
    ]
    return markdown_table(("Architecture", "Class in transformers"), rows)


def everything() -> str:
    """Write what became of every class."""
    result = json.loads(_RESULT.read_text(encoding="utf-8"))
    classes = result["classes"]
    served = [one["kind"] for one in classes if one["status"] == "exact"]
    why: dict[str, list[str]] = {}
    for one in classes:
        if one["status"] == "refused":
            reason = one["why"].removeprefix(f"In {one['kind']}: ").removesuffix(".")
            # Which layer is the first to do so says nothing of the class.
            reason = re.sub(r"^layer \d+ keeps", "a layer keeps", reason)
            why.setdefault(reason[0].lower() + reason[1:], []).append(one["kind"])
    rows = [
        (f"refused: {reason}", _listed(kinds))
        for reason, kinds in sorted(why.items(), key=lambda pair: -len(pair[1]))
    ]
    of = f"{len(classes)} classes of transformers {result['environment']['transformers']}"
    return markdown_table(
        (f"Of {of}", "Classes"), [(f"served exactly: {len(served)}", _listed(served)), *rows]
    )


def summary() -> str:
    """Write the names alone, as two rows."""
    classes = json.loads(_RESULT.read_text(encoding="utf-8"))["classes"]
    served = [_NAMES.get(family.name, family.name) for family in _families().FAMILIES]
    known = {type(family.build()).__name__ for family in _families().FAMILIES}
    more = [one for one in classes if one["status"] == "exact" and one["kind"] not in known]
    refused = [
        _short(one["kind"])
        for one in classes
        # Of the others no one expects that they read images.
        if one["status"] == "refused" and "not a vision-language model" not in one["why"]
    ]
    link = "[all, and why](docs/how-withdrawal-works.md#which-models)"
    rows = [
        ("Served", f"{', '.join(served)}, and {len(more)} more classes: {link}"),
        ("Refused", ", ".join(refused)),
    ]
    return markdown_table(("", "Architectures"), rows)


def _listed(kinds: Sequence[str]) -> str:
    return ", ".join(f"`{_short(kind)}`" for kind in sorted(kinds))


def _short(kind: str) -> str:
    for suffix in _SUFFIXES:
        kind = kind.removesuffix(suffix)
    return kind.rstrip("_")


def _families() -> ModuleType:
    spec = importlib.util.spec_from_file_location("families_of_the_tests", _TESTS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    sys.path.append(str(_TESTS.parent))  # for what lies beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(_TESTS.parent))
    return module
