"""A tiny random Kimi-K2.5 checkpoint, written as the published one lies on the hub.

Names of files, keys and weights, and the form in which experts are packed, are those of
moonshotai/Kimi-K2.5 as mirrors of its files show them; the template says the same in our own words.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch
from kimi_checkpoint import BASE, IDS, VOCABULARY, random_state, ranks, tokenizer_config
from mvw_kimi_vl.model import KimiK25
from mvw_kimi_vl.tiny import small_config
from mvw_kimi_vl.tokenizer import NEWER_TEMPLATE, OPENS
from safetensors.torch import save_file
from torch import Tensor

GROUP, BITS = 32, 4
TOKENS = {OPENS.get(name, name): number for name, number in IDS.items()}
PLAIN = {"<think>": BASE + 5, "</think>": BASE + 6}
_CODE = "modeling_kimi_k25.KimiK25ForConditionalGeneration"
PACKED = {
    "config_groups": {
        "group_0": {
            "input_activations": None,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {
                "actorder": None,
                "block_structure": None,
                "dynamic": False,
                "group_size": GROUP,
                "num_bits": BITS,
                "observer": "minmax",
                "observer_kwargs": {},
                "strategy": "group",
                "symmetric": True,
                "type": "int",
            },
        }
    },
    "format": "pack-quantized",
    "ignore": [
        "lm_head",
        "re:.*self_attn.*",
        "re:.*shared_experts.*",
        "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
    ],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
}
IMAGES = {
    "auto_map": {
        "AutoProcessor": "kimi_k25_processor.KimiK25Processor",
        "AutoImageProcessor": "kimi_k25_vision_processing.KimiK25VisionProcessor",
    },
    "media_proc_cfg": {
        "in_patch_limit": 64,
        "patch_size": 14,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "merge_kernel_size": 2,
        "fixed_output_tokens": None,
        "patch_limit_on_one_side": 512,
        "in_patch_limit_each_frame": 4096,
        "in_patch_limit_video": None,
        "sample_fps": 2.0,
        "max_num_frames_each_video": None,
        "temporal_merge_kernel_size": 4,
        "timestamp_mode": "hh:mm:ss.fff",
        "config_type": "media_proc.processors.moonvit.MoonViTMediaProcessorConfig",
    },
}


def config() -> dict[str, Any]:
    """Make `config.json`."""
    told = small_config(str(KimiK25.checkpoint))
    del told["in_token_limit"]
    del told["torch_dtype"]
    told |= {
        "architectures": ["KimiK25ForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_kimi_k25.KimiK25Config",
            "AutoModel": _CODE,
            "AutoModelForCausalLM": _CODE,
        },
        "dtype": "bfloat16",
        "ignore_index": -100,
        "media_placeholder_token_id": TOKENS["<|media_pad|>"],
        "tie_word_embeddings": False,
        "use_unified_vision_chunk": True,
        "video_placeholder": "<|kimi_k25_video_placeholder|>",
    }
    told["text_config"] |= {
        "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
        "aux_loss_alpha": 0.001,
        "ep_size": 1,
        "hidden_act": "silu",
        "model_type": "kimi_k2",
        "moe_intermediate_size": GROUP,
        "moe_layer_freq": 1,
        "quantization_config": PACKED,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 4.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 256,
            "type": "yarn",
        },
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "vocab_size": VOCABULARY,
        **{f"{name}_token_id": TOKENS[f"[{name.upper()}]"] for name in ("bos", "eos", "pad")},
    }
    return told


def weights(told: dict[str, Any]) -> dict[str, Tensor]:
    """Make the weights under the published names, none of them packed."""
    text, vision = told["text_config"], told["vision_config"]
    vision = {key.removeprefix("vt_"): one for key, one in vision.items()}
    state = random_state({"text_config": text, "vision_config": vision})
    names = {"linear_1": "proj.0", "linear_2": "proj.2"}
    draw = torch.Generator().manual_seed(1)
    made: dict[str, Tensor] = {}
    for name, value in state.items():
        head, of_projector, rest = name.partition("multi_modal_projector.")
        if of_projector:
            part, _, kind = rest.partition(".")
            made[f"{head}mm_projector.{names.get(part, part)}.{kind}"] = value
        elif name.endswith("self_attn.q_proj.weight"):
            layer, rank = name.removesuffix("q_proj.weight"), text["q_lora_rank"]
            down, up = (rank, value.shape[1]), (value.shape[0], rank)
            for part, shape in (("q_a_proj", down), ("q_b_proj", up)):
                values = torch.randn(shape, generator=draw)
                made[f"{layer}{part}.weight"] = values * 1.5 / shape[1] ** 0.5
            made[f"{layer}q_a_layernorm.weight"] = torch.ones(rank)
        else:
            made[name] = value
    return {name: value.bfloat16() for name, value in made.items()}


def packed(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Round a matrix to four bits: eight numbers to an integer, a scale for each group, the shape.

    weight: # (out, in); in is a multiple of the group.
    """
    rows, columns = weight.shape
    groups = weight.float().view(rows, -1, GROUP)
    scale = (groups.abs().amax(dim=-1, keepdim=True) / 7).bfloat16()
    whole = (groups / scale.float()).round().clamp(-8, 7).long().view(rows, columns) + 8
    places = torch.arange(0, 32, BITS)
    words = (whole.view(rows, -1, 32 // BITS) << places).sum(dim=-1)
    words = torch.where(words >= 2**31, words - 2**32, words).int()
    return words, scale[..., 0], torch.tensor([rows, columns], dtype=torch.int32)


def unpacked(words: Tensor, scale: Tensor, shape: Tensor) -> Tensor:
    """Read what `packed` makes."""
    places = torch.arange(0, 32, BITS)
    whole = ((words.long()[..., None] >> places) & 15) - 8
    rows, columns = shape.tolist()
    values = whole.view(rows, -1, GROUP) * scale.float()[..., None]
    return values.view(rows, columns).bfloat16()


def write_checkpoint(folder: Path, *, pack: bool = True) -> None:
    """Write the folder; unpacked, it has the same numbers under the names of plain weights."""
    folder.mkdir(parents=True, exist_ok=True)
    told = config()
    state: dict[str, Tensor] = {}
    for name, value in weights(told).items():
        if ".mlp.experts." not in name:
            state[name] = value
            continue
        three = packed(value)
        if pack:
            for kind, one in zip(("packed", "scale", "shape"), three, strict=True):
                state[f"{name}_{kind}"] = one
        else:
            state[name] = unpacked(*three)
    if not pack:
        del told["text_config"]["quantization_config"]

    def write(name: str, content: dict[str, Any]) -> None:
        (folder / name).write_text(json.dumps(content))

    write("config.json", told)
    names = sorted(state)
    index: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-000002.safetensors"
        save_file({one: state[one].contiguous() for one in part}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    write("model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks().items()]
    (folder / "tiktoken.model").write_text("\n".join(lines) + "\n")
    (folder / "chat_template.jinja").write_text(NEWER_TEMPLATE)
    write("tokenizer_config.json", tokenizer_config("tokenization_kimi", TOKENS, PLAIN))
    write("preprocessor_config.json", IMAGES)
    eos = TOKENS["<|im_end|>"]
    write("generation_config.json", {"max_length": 262144, "eos_token_id": eos})
