"""Small random checkpoints that vLLM's CPU kernels take: as on the hub, with heads of 32."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import kimi_checkpoint
from hub_folder import _CLIP_MEAN, _QWEN, _QWEN_TOKENS, BY_PROFILE, HubFolder, Ids, _chatml
from hub_folder import write_hub_folder as write

WIDE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
}
_SECTIONS = {"mrope_section": [4, 6, 6]}


def _widened(make: Callable[[Ids, int], dict[str, Any]]) -> Callable[[Ids, int], dict[str, Any]]:
    def config(ids: Ids, vocabulary: int) -> dict[str, Any]:
        made = make(ids, vocabulary)
        text = made.get("text_config", made)
        text.update(WIDE)
        if "head_dim" in text:
            text["head_dim"] = 32
        if "rope_scaling" in text:
            text["rope_scaling"] = {**text["rope_scaling"], **_SECTIONS}
        if "out_hidden_size" in made["vision_config"]:
            made["vision_config"]["out_hidden_size"] = WIDE["hidden_size"]
        return made

    return config


def _qwen2_vl(ids: Ids, vocabulary: int) -> dict[str, Any]:
    made = BY_PROFILE["qwen2.5-vl-7b"].config(ids, vocabulary)
    return made | {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "vision_config": {
            "depth": 2,
            "embed_dim": 32,
            "mlp_ratio": 2,
            "num_heads": 4,
            "in_chans": 3,
            "hidden_size": WIDE["hidden_size"],
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    }


def _llava(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": ids["<image>"],
        "model_type": "llava",
        "pad_token_id": ids["<pad>"],
        "projector_hidden_act": "gelu",
        "text_config": {
            **WIDE,
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "bos_token_id": ids["<s>"],
            "eos_token_id": ids["</s>"],
            "pad_token_id": ids["<pad>"],
            "torch_dtype": "float16",
            "vocab_size": vocabulary,
        },
        "torch_dtype": "float16",
        "transformers_version": "4.36.0.dev0",
        "vision_config": {
            "hidden_size": 32,
            "image_size": 126,
            "intermediate_size": 48,
            "model_type": "clip_vision_model",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "patch_size": 14,
            "projection_dim": 32,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


_LLAVA = HubFolder(
    "llava",
    _llava,
    ("<unk>", "<s>", "</s>", "<image>", "<pad>"),
    {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "{% for message in messages %}{{ message['role'] | upper + ': ' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\\n' }}"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{%- endif -%}"
    "{{ ' ' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "chat_template.json",
    {
        "preprocessor_config.json": {
            "crop_size": {"height": 126, "width": 126},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            **_CLIP_MEAN,
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "LlavaProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": 126},
        },
        "processor_config.json": {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
    },
    weight_names={
        r"^model\.vision_tower\.": "vision_tower.vision_model.",
        r"^vision_tower\.(?!vision_model)": "vision_tower.vision_model.",
    },
    starts_with=frozenset({"language_model", "vision_tower.vision_model", "multi_modal_projector"}),
)
_WIDE = {name: BY_PROFILE[name] for name in ("qwen2.5-vl-7b", "qwen3-vl-8b-thinking")}
FOLDERS = {
    "llava": _LLAVA,
    "qwen2-vl": replace(
        BY_PROFILE["qwen2.5-vl-7b"],
        config=_widened(_qwen2_vl),
        special=_QWEN,
        tokens=_QWEN_TOKENS,
        template=_chatml("<|vision_start|><|image_pad|><|vision_end|>"),
        files={
            "preprocessor_config.json": {
                **BY_PROFILE["qwen2.5-vl-7b"].files["preprocessor_config.json"],
                "processor_class": "Qwen2VLProcessor",
            }
        },
    ),
    "qwen2.5-vl": replace(_WIDE["qwen2.5-vl-7b"], config=_widened(_WIDE["qwen2.5-vl-7b"].config)),
    "qwen3-vl": replace(
        _WIDE["qwen3-vl-8b-thinking"], config=_widened(_WIDE["qwen3-vl-8b-thinking"].config)
    ),
}


def kimi_config() -> dict[str, Any]:
    """Widen the small Kimi-VL: CPU_MLA reads latents of 512 and rotary keys of 64, no others."""
    config = deepcopy(kimi_checkpoint.CONFIG)
    config["text_config"] |= {
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        # vLLM takes it for the latents' norm, too, where the checkpoints' own code has this.
        "rms_norm_eps": 1e-06,
    }
    return config


def write_vllm_checkpoint(name: str, folder: Path) -> Path:
    """Write one of `FOLDERS`, or `kimi-vl`."""
    if name != "kimi-vl":
        return write(FOLDERS[name], folder)
    kimi_checkpoint.write_checkpoint(folder, kimi_config(), in_token_limit=1024)
    return folder
