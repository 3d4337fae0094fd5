"""The published configurations: as large as the hub says, and told without a network.

Figures of the hub are `safetensors.total` of its API, or of its pages as far as they show one.
"""

from __future__ import annotations

import socket

import pytest
from mvw_hf.loading import read_published
from mvw_hf.model import HuggingFace
from mvw_kimi_vl.model import KimiK25
from narrowed import PUBLISHED
from transformers import CONFIG_MAPPING, AutoConfig

from mvw_cli.adapter import ModelSpec
from mvw_cli.cost.shape import shape_of

TOTALS = {  # parameters, as far as the page of each checkpoint is known to show them
    "Qwen/Qwen2.5-VL-7B-Instruct": "8292166656",
    "Qwen/Qwen3-VL-8B-Thinking": "8767123696",
    "Qwen/Qwen3-VL-8B-Instruct": "8767123696",
    "OpenGVLab/InternVL3-8B-hf": "7944373760",
    "OpenGVLab/InternVL3_5-8B-HF": "8.53 billion",
    "zai-org/GLM-4.1V-9B-Thinking": "10.29 billion",
    "zai-org/GLM-4.6V-Flash": "10.29 billion",
    "zai-org/GLM-4.6V": "108B",
    "google/gemma-3-12b-it": "12187325040",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": "8.03 billion",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": "2246784880",
    "Qwen/Qwen3.5-9B": "9653104368",
    "openbmb/MiniCPM-V-4.6": "1300428016",
    "google/gemma-4-E4B-it": "7996156490",
    "allenai/Molmo2-8B": "9B",
}
NOT_LOADED = {  # what of these is in the files, and in no parameter of transformers' class
    # A head that guesses further tokens: a layer of full attention, a matrix of two inputs, norms.
    "Qwen/Qwen3.5-9B": 4096 * (2 * 4096 + 2 * 16 * 256 + 2 * 4 * 256 + 16 * 256 + 3 * 12288)
    + 5 * 4096
    + 2 * 256,
    # Keys and values of the 15 + 3 layers that attend to others' instead; a scale for each layer.
    "google/gemma-4-E4B-it": 15 * (2 * 2560 * 512 + 256) + 3 * (2 * 2560 * 1024 + 512) + 42,
}
KV_BYTES = {  # 2 (keys, values) x layers x KV heads x head dimension x 2 bytes
    "Qwen/Qwen2.5-VL-7B-Instruct": 2 * 28 * 4 * 128 * 2,
    "Qwen/Qwen3-VL-8B-Thinking": 2 * 36 * 8 * 128 * 2,
    "Qwen/Qwen3-VL-8B-Instruct": 2 * 36 * 8 * 128 * 2,
    "OpenGVLab/InternVL3-8B-hf": 2 * 28 * 4 * 128 * 2,
    "OpenGVLab/InternVL3_5-8B-HF": 2 * 36 * 8 * 128 * 2,
    "zai-org/GLM-4.1V-9B-Thinking": 2 * 40 * 2 * 128 * 2,
    "zai-org/GLM-4.6V-Flash": 2 * 40 * 2 * 128 * 2,
    "zai-org/GLM-4.6V": 2 * 46 * 8 * 128 * 2,
    "google/gemma-3-12b-it": 2 * 48 * 8 * 256 * 2,
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": 2 * 28 * 4 * 128 * 2,
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": 2 * 24 * 32 * 64 * 2,
    "Qwen/Qwen3.5-9B": 2 * 8 * 4 * 256 * 2,  # 8 of 32 layers
    "openbmb/MiniCPM-V-4.6": 2 * 6 * 2 * 256 * 2,  # 6 of 24
    "google/gemma-4-E4B-it": 2 * (20 * 2 * 256 + 4 * 2 * 512) * 2,  # 24 of 42
    "allenai/Molmo2-8B": 2 * 36 * 8 * 128 * 2,
}
STATE_BYTES = {  # recurrent layers x (convolution in bfloat16, state in float32)
    "Qwen/Qwen3.5-9B": 24 * (2 * 4 * (2 * 16 + 32) * 128 + 4 * 32 * 128 * 128),
    "openbmb/MiniCPM-V-4.6": 18 * (2 * 4 * (2 * 16 + 16) * 128 + 4 * 16 * 128 * 128),
}
DTYPES = {
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": "float16",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": "float32",
    "allenai/Molmo2-8B": "float32",
}
"""Of the file, where it is not bfloat16."""
STACKS = {  # the hub's total of the language model that the authors name
    "OpenGVLab/InternVL3_5-8B-HF": 8190735360,  # Qwen/Qwen3-8B
    "Qwen/Qwen3-VL-8B-Instruct": 8190735360,
}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_size(name: str, no_network: None) -> None:
    adapter = HuggingFace()
    shape = shape_of(adapter, adapter.shape(ModelSpec(model=name)))
    total = int(shape.weights.total.numbers) + NOT_LOADED.get(name, 0)
    assert TOTALS[name] in (str(total), f"{total / 1e9:.2f} billion", f"{total / 1e9:.0f}B")
    assert STACKS.get(name, total - shape.weights.vision) == total - shape.weights.vision
    assert 2 * shape.kv_elements_per_token() == KV_BYTES[name]
    assert shape.state_bytes(2) == STATE_BYTES.get(name, 0)
    assert shape.dtype == DTYPES.get(name, "bfloat16")


def test_its_smaller_sibling_counts_to_the_last_number() -> None:
    """Molmo2-4B: `total_parameters` of its index. 27 layers are configured, and 25 published."""
    told = read_published(HuggingFace.published, "allenai/Molmo2-8B") or {}
    sizes = {"hidden_size": 2560, "intermediate_size": 9728}
    told["text_config"] |= sizes
    told["adapter_config"] |= {"text_hidden_size": 2560, "intermediate_size": 9728}
    if told.pop("model_type") not in CONFIG_MAPPING:
        pytest.skip("not in this transformers")
    shape = shape_of(HuggingFace(), AutoConfig.for_model("molmo2", **told))
    assert int(shape.weights.total.numbers) == 4850869200


def test_kimi_k2_5_counts_what_its_files_hold() -> None:
    """1058.59 billion numbers are in them, as Xinference has it of the hub: with a scale for each
    group of 32 of the experts, and the two sides of each matrix."""
    adapter = KimiK25()
    weights = shape_of(adapter, adapter.shape(ModelSpec(model=adapter.checkpoint))).weights
    sides = 2 * 3 * 384 * 60
    held = weights.total.numbers + weights.experts.numbers / 32 + sides
    assert f"{held / 1e9:.2f}" == "1058.59"


def test_a_pinned_revision_is_not_answered_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *a, **kw: asked.append((a, kw)))
    for reads_the_same_file in ("check_kind", "of_base"):
        monkeypatch.setattr(f"mvw_hf.model.{reads_the_same_file}", lambda *a: a[0])
    name = next(iter(PUBLISHED))
    HuggingFace().shape(ModelSpec(model=name, revision="abc"))
    assert [(a, kw["revision"]) for a, kw in asked] == [((name,), "abc")]
