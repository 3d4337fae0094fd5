"""Models that also speak: the part that reads and writes is what is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
import torch
import transformers
from mvw_hf.model import HuggingFace
from safetensors.torch import load_file, save_file

from mvw_cli import ModelProblem, ModelSpec

THINKERS = {
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeThinkerForConditionalGeneration",
}


@pytest.mark.parametrize("kind", THINKERS)
def test_the_thinker_of_a_checkpoint_is_loaded(kind: str, tmp_path: Path) -> None:
    thinker = tiny_models.build(getattr(transformers, THINKERS[kind]))
    thinker.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    whole = {f"thinker.{name}": one for name, one in weights.items()}
    whole["talker.codec_head.weight"] = torch.zeros(2, 2)  # no part of it
    save_file(whole, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    told = {"model_type": kind, "thinker_config": config, "enable_audio_output": False}
    (tmp_path / "config.json").write_text(json.dumps(told), encoding="utf-8")
    spec = ModelSpec(model=str(tmp_path))
    loaded = HuggingFace().load_model(spec)
    assert type(loaded) is type(thinker)
    found = loaded.state_dict()
    assert all(torch.equal(found[name], one) for name, one in thinker.state_dict().items())
    assert type(HuggingFace().shape(spec)) is type(loaded.config)


def test_phi_4_is_refused_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "phi4_multimodal"}', encoding="utf-8")
    with pytest.raises(ModelProblem) as raised:
        HuggingFace().load_model(ModelSpec(model=str(tmp_path)))
    assert "LoRA weights in a folder of their own" in str(raised.value.cause)
