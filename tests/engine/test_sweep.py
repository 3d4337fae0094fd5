"""Classes of transformers, and text stacks below them: exact, or refused with a sentence.

A sample; `make sweep` judges all of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers as hf
from families import IMAGE, TEXT, Family, _llava, build
from sweep import judge, judge_model
from transformers.models.auto import modeling_auto

from mvw_cli.engine import prefill
from mvw_cli.oracle.masked import extended


def _rope(kind: str, **settings: Any) -> dict[str, Any]:
    """Frequencies that change at a length that some requests reach in the prompt, some later."""
    rope = {"rope_type": kind, "rope_theta": 100.0, **settings}
    return {**TEXT, "max_position_embeddings": 26, "rope_parameters": rope}


STACKS: dict[str, Any] = {
    "gpt-oss": lambda: _llava(
        hf.GptOssConfig(
            **TEXT,
            head_dim=8,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=12,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    ),
    "gemma2": lambda: _llava(hf.Gemma2Config(**TEXT, head_dim=8, sliding_window=12)),
    "doge": lambda: _llava(hf.DogeConfig(**TEXT)),
    "dynamic": lambda: _llava(hf.LlamaConfig(**_rope("dynamic", factor=4.0))),
    "longrope": lambda: _llava(
        hf.LlamaConfig(
            **_rope(
                "longrope",
                factor=1.0,
                short_factor=[1.0] * 4,
                long_factor=[3.0] * 4,
                original_max_position_embeddings=30,
            )
        )
    ),
}


@pytest.mark.parametrize("name", STACKS)
def test_text_stacks_below_llava(name: str) -> None:
    model = build(Family(name, STACKS[name], lambda seed: {}))
    model.generation_config.suppress_tokens = [IMAGE]
    for module in model.modules():
        if hasattr(module, "dt_proj"):  # Doge's, made as zeros: then it adds the same everywhere
            module.A.data.fill_(-2.0)
    prompt = tiny_models.prompt(model, 0)
    with torch.no_grad():
        whole, more = (model(**extended(model, prompt, ids)).logits for ids in ([], [5]))
    if not torch.allclose(whole[:, -1], more[:, -2], atol=1e-4):
        pytest.skip("in this transformers its tokens see those after them")  # Doge's once did
    outcome = judge_model(model, name)
    assert (outcome.status, outcome.why) == ("exact", "")


def in_this_transformers(name: str) -> str:
    if not hasattr(hf, name):
        pytest.skip("not in this transformers")
    return name


EXACT = (
    "Ernie4_5_VLMoeForConditionalGeneration",
    "AriaForConditionalGeneration",
    "Gemma4UnifiedForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "Molmo2ForConditionalGeneration",
    "MuseGlimmerForConditionalGeneration",
    "Qwen3OmniMoeForConditionalGeneration",
    "VideoLlama3ForConditionalGeneration",
)
REFUSED = {
    "Blip2ForConditionalGeneration": "takes no position ids",
    "DiffusionGemmaForBlockDiffusion": "writes blocks of tokens",
    "Kosmos2_5ForConditionalGeneration": "names no token that stands in the prompt",
    "MiniMaxM3SparseForConditionalGeneration": "a state that can't be split",
    "Phi4MultimodalForCausalLM": "LoRA weights in a folder of their own",
    "UdopForConditionalGeneration": "It is an encoder-decoder",
    "VoxtralForConditionalGeneration": "not a vision-language model",
}


@pytest.mark.parametrize("name", EXACT)
def test_classes_that_are_exact(name: str) -> None:
    outcome = judge(in_this_transformers(name))
    assert (outcome.status, outcome.why) == ("exact", "")


@pytest.mark.parametrize("name", REFUSED)
def test_classes_that_are_refused(name: str) -> None:
    outcome = judge(in_this_transformers(name))
    assert outcome.status == "refused" and REFUSED[name] in outcome.why


def test_the_table_in_the_docs_is_of_all_classes_and_knows_no_other_outcome() -> None:
    file = Path(__file__).parents[2] / "benchmarks" / "results" / "families.json"
    result = json.loads(file.read_text(encoding="utf-8"))
    told = {one["kind"]: one for one in result["classes"]}
    assert {one["status"] for one in told.values()} == {"exact", "refused"}
    assert all(one["why"] for one in told.values() if one["status"] == "refused")
    if result["environment"]["transformers"] == hf.__version__:
        assert {*told} == {*modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.values()}
    assert {*EXACT} <= {kind for kind, one in told.items() if one["status"] == "exact"}
    assert {*REFUSED} <= {kind for kind, one in told.items() if one["status"] == "refused"}


def test_it_tells_a_fault_from_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions one too early, as PaliGemma's once were."""
    plain = prefill._next_position
    monkeypatch.setattr(prefill, "_next_position", lambda *given: plain(*given) - 1)
    outcome = judge("LlavaForConditionalGeneration")
    assert outcome.status == "wrong" and "generate" in outcome.why and "oracle" in outcome.why
