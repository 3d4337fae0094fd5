"""Classes of transformers, and text stacks below them: exact, or refused with a sentence.

A sample; `make sweep` judges all of them.
"""

from __future__ import annotations

from typing import Any

import pytest
import transformers as hf
from families import IMAGE, TEXT, Family, _llava, build
from sweep import judge, judge_model


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
        hf.Phi3Config(
            **_rope(
                "longrope",
                short_factor=[1.0] * 4,
                long_factor=[3.0] * 4,
                original_max_position_embeddings=26,
            )
        )
    ),
}


@pytest.mark.parametrize("name", STACKS)
def test_text_stacks_below_llava(name: str) -> None:
    model = build(Family(name, STACKS[name], lambda seed: {}))
    model.generation_config.suppress_tokens = [IMAGE]
    outcome = judge_model(model, name)
    assert (outcome.status, outcome.why) == ("exact", "")


@pytest.mark.parametrize("name", ["LlavaNextForConditionalGeneration"])
def test_classes_that_are_exact(name: str) -> None:
    outcome = judge(name)
    assert (outcome.status, outcome.why) == ("exact", "")
