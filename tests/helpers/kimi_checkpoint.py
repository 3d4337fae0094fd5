"""A tiny random Kimi-VL checkpoint, written as the published ones lie on the hub."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch
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
CONFIG: dict[str, Any] = {
    "architectures": ["KimiVLForConditionalGeneration"],
    "auto_map": {"AutoModelForCausalLM": "modeling_kimi_vl.KimiVLForConditionalGeneration"},
    "model_type": "kimi_vl",
    "media_placeholder_token_id": IDS["<|media_pad|>"],
    "torch_dtype": "float32",
    "ignore_index": -100,
    "text_config": {
        "model_type": "deepseek_v3",
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "n_shared_experts": 2,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.446,
        "norm_topk_prob": True,
        "n_group": 1,
        "topk_group": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 800000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "bos_token_id": IDS["[BOS]"],
        "eos_token_id": IDS["[EOS]"],
        "pad_token_id": IDS["[PAD]"],
        "torch_dtype": "float32",
    },
    "vision_config": {
        "model_type": "moonvit",
        "patch_size": 14,
        "init_pos_emb_height": 4,
        "init_pos_emb_width": 4,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "merge_kernel_size": [2, 2],
        "torch_dtype": "float32",
    },
}
IMAGES = {
    "auto_map": {"AutoImageProcessor": "image_processing_kimi_vl.KimiVLImageProcessor"},
    "in_token_limit": 64,
    "patch_size": 14,
    "num_pooled_tokens": 1024,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "pad_input": True,
    "merge_kernel_size": [2, 2],
}


def random_state(seed: int = 0) -> dict[str, Tensor]:
    """Make random weights under the original names, large enough to matter."""
    draw = torch.Generator().manual_seed(seed)
    text, sight = CONFIG["text_config"], CONFIG["vision_config"]
    state: dict[str, Tensor] = {}

    def matrix(name: str, out: int, into: int, *, bias: bool = False) -> None:
        state[f"{name}.weight"] = torch.randn(out, into, generator=draw) * 1.5 / into**0.5
        if bias:
            state[f"{name}.bias"] = torch.randn(out, generator=draw) * 0.1

    def norm(name: str, width: int, *, bias: bool = False) -> None:
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=draw)
        if bias:
            state[f"{name}.bias"] = 0.1 * torch.randn(width, generator=draw)

    def mlp(name: str, inner: int) -> None:
        for part in ("gate", "up"):
            matrix(f"{name}.{part}_proj", inner, text["hidden_size"])
        matrix(f"{name}.down_proj", text["hidden_size"], inner)

    wide = sight["hidden_size"]
    matrix("vision_tower.patch_embed.proj", wide, 3 * 14 * 14, bias=True)
    kernel = state["vision_tower.patch_embed.proj.weight"]
    state["vision_tower.patch_embed.proj.weight"] = kernel.view(wide, 3, 14, 14)
    state["vision_tower.patch_embed.pos_emb.weight"] = torch.randn(4, 4, wide, generator=draw)
    for number in range(sight["num_hidden_layers"]):
        block = f"vision_tower.encoder.blocks.{number}"
        norm(f"{block}.norm0", wide, bias=True)
        norm(f"{block}.norm1", wide, bias=True)
        matrix(f"{block}.wqkv", 3 * wide, wide, bias=True)
        matrix(f"{block}.wo", wide, wide, bias=True)
        matrix(f"{block}.mlp.fc0", sight["intermediate_size"], wide, bias=True)
        matrix(f"{block}.mlp.fc1", wide, sight["intermediate_size"], bias=True)
    norm("vision_tower.encoder.final_layernorm", wide, bias=True)
    norm("multi_modal_projector.pre_norm", wide, bias=True)
    matrix("multi_modal_projector.linear_1", 4 * wide, 4 * wide, bias=True)
    matrix("multi_modal_projector.linear_2", text["hidden_size"], 4 * wide, bias=True)
    model = "language_model.model"
    matrix(f"{model}.embed_tokens", VOCABULARY, text["hidden_size"])
    heads, rank = text["num_attention_heads"], text["kv_lora_rank"]
    nope, rope, value = (text[f"{k}_head_dim"] for k in ("qk_nope", "qk_rope", "v"))
    for number in range(text["num_hidden_layers"]):
        layer = f"{model}.layers.{number}"
        norm(f"{layer}.input_layernorm", text["hidden_size"])
        norm(f"{layer}.post_attention_layernorm", text["hidden_size"])
        matrix(f"{layer}.self_attn.q_proj", heads * (nope + rope), text["hidden_size"])
        matrix(f"{layer}.self_attn.kv_a_proj_with_mqa", rank + rope, text["hidden_size"])
        norm(f"{layer}.self_attn.kv_a_layernorm", rank)
        matrix(f"{layer}.self_attn.kv_b_proj", heads * (nope + value), rank)
        matrix(f"{layer}.self_attn.o_proj", text["hidden_size"], heads * value)
        if number < text["first_k_dense_replace"]:
            mlp(f"{layer}.mlp", text["intermediate_size"])
            continue
        matrix(f"{layer}.mlp.gate", text["n_routed_experts"], text["hidden_size"])
        bias = 0.3 * torch.randn(text["n_routed_experts"], generator=draw)
        state[f"{layer}.mlp.gate.e_score_correction_bias"] = bias
        for expert in range(text["n_routed_experts"]):
            mlp(f"{layer}.mlp.experts.{expert}", text["moe_intermediate_size"])
        mlp(
            f"{layer}.mlp.shared_experts",
            text["n_shared_experts"] * text["moe_intermediate_size"],
        )
    norm(f"{model}.norm", text["hidden_size"])
    matrix("language_model.lm_head", VOCABULARY, text["hidden_size"])
    return state


def ranks() -> dict[bytes, int]:
    """List the byte pairs of the tokenizer: all single bytes, then a few words."""
    tokens = [bytes([number]) for number in range(256)] + list(WORDS)
    return {token: rank for rank, token in enumerate(tokens)}


def write_checkpoint(folder: Path, *, config: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """Write the folder; return its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    state = random_state()
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    names = sorted(state)
    parts = (names[: len(names) // 2], names[len(names) // 2 :])
    files = [f"model-{number}-of-2.safetensors" for number in (1, 2)]
    for file, part in zip(files, parts, strict=True):
        save_file(
            {name: state[name].contiguous() for name in part}, folder / file, {"format": "pt"}
        )
    index = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks().items()]
    (folder / "tiktoken.model").write_text("\n".join(lines) + "\n")
    added = {str(number): {"content": name, "special": True} for name, number in IDS.items()}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "auto_map": {"AutoTokenizer": ["tokenization_moonshot.TikTokenTokenizer", None]},
                "added_tokens_decoder": added,
                "bos_token": "[BOS]",
                "eos_token": "[EOS]",
                "pad_token": "[PAD]",
                "unk_token": "[UNK]",
                "tokenizer_class": "TikTokenTokenizer",
            }
        )
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES))
    generation = {"do_sample": False, "eos_token_id": IDS["<|im_end|>"], "max_length": 512}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return state
