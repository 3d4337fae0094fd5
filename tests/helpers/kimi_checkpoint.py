"""A tiny random Kimi-VL checkpoint, written as the published ones lie on the hub."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mvw_kimi_vl.tiny import small_config
from safetensors.torch import save_file
from torch import Tensor

WORDS = (b"th", b"he", b"the", b" the", b"in", b"at", b" c", b" ca", b" cat", b"ow", b" m", b"an")
BASE = 256 + len(WORDS)
SPECIAL = {
    "[BOS]": 0,
    "[EOS]": 1,
    "<|im_end|>": 2,
    "<|im_user|>": 3,
    "<|im_assistant|>": 4,
    "<|im_system|>": 10,
    "<|im_middle|>": 17,
    "<|media_start|>": 18,
    "<|media_content|>": 19,
    "<|media_end|>": 20,
    "<|media_pad|>": 21,
    "[UNK]": 22,
    "[PAD]": 23,
}
IDS = {name: BASE + offset for name, offset in SPECIAL.items()}
VOCABULARY = BASE + 24
_MODEL = "modeling_kimi_vl.KimiVLForConditionalGeneration"
CONFIG = small_config() | {
    "architectures": ["KimiVLForConditionalGeneration"],
    "auto_map": {
        "AutoConfig": "configuration_kimi_vl.KimiVLConfig",
        "AutoModel": _MODEL,
        "AutoModelForCausalLM": _MODEL,
    },
    "media_placeholder_token_id": IDS["<|media_pad|>"],
}
del CONFIG["in_token_limit"]  # stands in `preprocessor_config.json` on the hub
CONFIG["text_config"] |= {
    "vocab_size": VOCABULARY,
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_act": "silu",
    "moe_layer_freq": 1,
    "ep_size": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "rope_scaling": None,
    **{f"{name}_token_id": IDS[f"[{name.upper()}]"] for name in ("bos", "eos", "pad")},
}
IMAGES = {
    "auto_map": {
        "AutoImageProcessor": "image_processing_kimi_vl.KimiVLImageProcessor",
        "AutoProcessor": "processing_kimi_vl.KimiVLProcessor",
    },
    "in_token_limit": 64,
    "patch_size": 14,
    "num_pooled_tokens": 1024,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "pad_input": True,
    "merge_kernel_size": [2, 2],
}


def shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """List the weights under the original names; those with a bias end in a plus sign."""
    text, sight = config["text_config"], config["vision_config"]
    wide, inner, hidden = sight["hidden_size"], sight["intermediate_size"], text["hidden_size"]

    def mlp(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for part in ("gate", "up"):
            yield f"{name}.{part}_proj", (width, hidden)
        yield f"{name}.down_proj", (hidden, width)

    yield "vision_tower.patch_embed.proj+", (wide, 3, 14, 14)
    side = sight["init_pos_emb_height"]
    yield "vision_tower.patch_embed.pos_emb", (side, side, wide)
    for number in range(sight["num_hidden_layers"]):
        block = f"vision_tower.encoder.blocks.{number}"
        yield from ((f"{block}.{norm}+", (wide,)) for norm in ("norm0", "norm1"))
        yield f"{block}.wqkv+", (3 * wide, wide)
        yield f"{block}.wo+", (wide, wide)
        yield f"{block}.mlp.fc0+", (inner, wide)
        yield f"{block}.mlp.fc1+", (wide, inner)
    yield "vision_tower.encoder.final_layernorm+", (wide,)
    yield "multi_modal_projector.pre_norm+", (wide,)
    yield "multi_modal_projector.linear_1+", (4 * wide, 4 * wide)
    yield "multi_modal_projector.linear_2+", (hidden, 4 * wide)
    yield "language_model.model.embed_tokens", (VOCABULARY, hidden)
    heads, rank = text["num_attention_heads"], text["kv_lora_rank"]
    nope, rope, value = (text[f"{part}_head_dim"] for part in ("qk_nope", "qk_rope", "v"))
    for number in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{number}"
        yield f"{layer}.input_layernorm", (hidden,)
        yield f"{layer}.post_attention_layernorm", (hidden,)
        yield f"{layer}.self_attn.q_proj", (heads * (nope + rope), hidden)
        yield f"{layer}.self_attn.kv_a_proj_with_mqa", (rank + rope, hidden)
        yield f"{layer}.self_attn.kv_a_layernorm", (rank,)
        yield f"{layer}.self_attn.kv_b_proj", (heads * (nope + value), rank)
        yield f"{layer}.self_attn.o_proj", (hidden, heads * value)
        if number < text["first_k_dense_replace"]:
            yield from mlp(f"{layer}.mlp", text["intermediate_size"])
            continue
        width, experts = text["moe_intermediate_size"], text["n_routed_experts"]
        yield f"{layer}.mlp.gate", (experts, hidden)
        for expert in range(experts):
            yield from mlp(f"{layer}.mlp.experts.{expert}", width)
        yield from mlp(f"{layer}.mlp.shared_experts", text["n_shared_experts"] * width)
    yield "language_model.model.norm", (hidden,)
    yield "language_model.lm_head", (VOCABULARY, hidden)


def random_state(config: dict[str, Any]) -> dict[str, Tensor]:
    """Make random weights under the original names, large enough to matter."""
    draw = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, shape in shapes(config):
        name, with_bias = name.removesuffix("+"), name.endswith("+")
        values = torch.randn(shape, generator=draw)
        fan_in = values[0].numel()
        state[f"{name}.weight"] = values * 1.5 / fan_in**0.5 if values.ndim > 1 else 1 + values / 10
        if with_bias:
            state[f"{name}.bias"] = torch.randn(shape[0], generator=draw) / 10
        if name.endswith("mlp.gate"):
            bias = 0.3 * torch.randn(shape[0], generator=draw)
            state[f"{name}.e_score_correction_bias"] = bias
    # Never the likeliest: written by the model, a placeholder could not be read as text.
    state["language_model.lm_head.weight"][IDS["<|media_pad|>"]] = 0
    return state


def ranks() -> dict[bytes, int]:
    """List the byte pairs of the tokenizer: all single bytes, then a few words."""
    tokens = [bytes([number]) for number in range(256)] + list(WORDS)
    return {token: rank for rank, token in enumerate(tokens)}


def tokenizer_config(
    module: str, special: Mapping[str, int], plain: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Make `tokenizer_config.json`; plain tokens are text when decoded."""
    added = {
        str(number): {"content": name, "special": name in special}
        for name, number in {**special, **(plain or {})}.items()
    }
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    return {
        "added_tokens_decoder": added,
        "auto_map": {"AutoTokenizer": [f"{module}.TikTokenTokenizer", None]},
        "tokenizer_class": "TikTokenTokenizer",
        **{name: f"[{name.removesuffix('_token').upper()}]" for name in names},
    }


def write_checkpoint(
    folder: Path, config: dict[str, Any] = CONFIG, *, weights: bool = True, **images: Any
) -> dict[str, Tensor]:
    """Write the folder, with other settings of images where told; return its weights."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str, content: dict[str, Any]) -> None:
        (folder / name).write_text(json.dumps(content))

    write("config.json", config)
    state = random_state(config) if weights else {}
    if weights:
        names = sorted(state)
        parts = (names[: len(names) // 2], names[len(names) // 2 :])
        files = [f"model-{number}-of-2.safetensors" for number in (1, 2)]
        for file, part in zip(files, parts, strict=True):
            tensors = {name: state[name].contiguous() for name in part}
            save_file(tensors, folder / file, {"format": "pt"})
        index = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        write("model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks().items()]
    (folder / "tiktoken.model").write_text("\n".join(lines) + "\n")
    write("tokenizer_config.json", tokenizer_config("tokenization_moonshot", IDS))
    write("preprocessor_config.json", IMAGES | images)
    generation = {"do_sample": False, "eos_token_id": IDS["<|im_end|>"], "max_length": 512}
    write("generation_config.json", generation)
    return state
