"""Small random checkpoints in folders as the hub has them: the published files, names and keys.

Sizes are small and weights random; file names, keys of the configurations, names of the weights,
special tokens and the form of the chat templates are those of the published repositories, as their
files were in 2025, and in 2026 those of later models. The templates say the same in our own words.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mvw_hf.loading import without_video
from mvw_kimi_vl.tokenizer import build_tokenizer, read_ranks
from releases import UNSERVED
from safetensors.torch import load_file, save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText, AutoProcessor

QUESTION = "What is in the picture?"
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer.json cuts text; those of Llama 3 and GLM-4 differ in the digits."""
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "use_cache": True,
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "patch_size": 14,
    "vision_use_head": False,
}
_MROPE = [1, 1, 2]
_QWEN = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
_QWEN_PLAIN = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)
"""Added tokens of Qwen3 that are text when decoded."""
_CLIP_MEAN = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

Ids = Mapping[str, int]


@dataclass(frozen=True)
class HubFolder:
    """What lies in one repository, made small."""

    profile: str
    config: Callable[[Ids, int], dict[str, Any]]
    """Makes `config.json` from the ids of the special tokens and the size of the vocabulary."""
    special: Sequence[str]
    tokens: Mapping[str, Any]
    """`bos_token` and so on, as in `tokenizer_config.json`."""
    template: str
    template_file: str
    """Which file has the template; in `tokenizer_config.json` it is one key among others."""
    files: Mapping[str, Mapping[str, Any]]
    """Further JSON files."""
    plain_added: Sequence[str] = ()
    """Added tokens that are not special: they are text when decoded."""
    tokenizer_class: str = "PreTrainedTokenizerFast"
    generation: Mapping[str, Any] = field(default_factory=dict)
    stops: Sequence[str] = ()
    """What ends an output by `generation_config.json`, where `config.json` has not all of it."""
    weight_names: Mapping[str, str] = field(default_factory=dict)
    """Patterns that turn transformers' names into those of the repository, where it does not."""
    starts_with: frozenset[str] = frozenset()
    """How the names of all weights in the repository start."""
    unread: Callable[[Mapping[str, Any]], Mapping[str, Sequence[int]]] = lambda _: {}
    """Makes names and shapes of weights that no class reads, from `config.json`."""
    by_transformers_5: bool = False
    """Saved so: `tokenizer.json` alone tells which tokens were added."""
    needs: Sequence[str] = ()
    """Packages that prepare its images or unpack its weights, besides mvw's own."""


def _chatml(image: str, *, opens_thinking: bool = False) -> str:
    """ChatML, as Qwen's, InternVL's and LLaVA-OneVision's templates write it."""
    thinking = "<think>\\n" if opens_thinking else ""
    return (
        "{%- for message in messages -%}"
        "{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{%- if message['content'] is string -%}{{ message['content'] }}"
        "{%- else -%}{%- for part in message['content'] -%}"
        f"{{%- if part['type'] == 'image' -%}}{{{{ '{image}' }}}}"
        "{%- elif 'text' in part -%}{{ part['text'] }}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n"
        + thinking
        + "' }}{%- endif -%}"
    )


def _qwen2_5_vl(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "max_window_layers": 3,
        "model_type": "qwen2_5_vl",
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_sliding_window": False,
        "vision_config": {
            "depth": 2,
            "hidden_act": "silu",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "in_chans": 3,
            "out_hidden_size": 32,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": _MROPE},
        "vocab_size": vocabulary,
        **_TEXT,
    }


def _qwen3_vl(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen3_vl",
        "text_config": {
            **_TEXT,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": ids["<|endoftext|>"],
            "dtype": "bfloat16",
            "eos_token_id": ids["<|im_end|>"],
            "head_dim": 8,
            "model_type": "qwen3_vl_text",
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": _MROPE,
                "rope_type": "default",
            },
            "rope_theta": 5000000,
            "vocab_size": vocabulary,
        },
        "tie_word_embeddings": False,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {
            "deepstack_visual_indexes": [0, 1],
            "depth": 3,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 32,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 48,
            "model_type": "qwen3_vl",
            "num_heads": 4,
            "num_position_embeddings": 64,
            "out_hidden_size": 32,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    }


def _qwen3_5(ids: Ids, vocabulary: int) -> dict[str, Any]:
    vision = {key: one for key, one in _qwen3_vl(ids, vocabulary)["vision_config"].items()}
    recurrent = {f"linear_{kind}_head_dim": 8 for kind in ("key", "value")}
    return {
        **_qwen3_vl(ids, vocabulary),
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": {
            **_TEXT,
            **recurrent,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_output_gate": True,
            "bos_token_id": None,
            "dtype": "bfloat16",
            "eos_token_id": ids["<|endoftext|>"],
            "full_attention_interval": 2,
            "head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_conv_kernel_dim": 4,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "mamba_ssm_dtype": "float32",
            "model_type": "qwen3_5_text",
            "mtp_num_hidden_layers": 1,
            "mtp_use_dedicated_embeddings": False,
            "num_hidden_layers": 4,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": _MROPE,
                "partial_rotary_factor": 1.0,
                "rope_theta": 10000000,
                "rope_type": "default",
            },
            "vocab_size": vocabulary,
        },
        "vision_config": {**vision, "deepstack_visual_indexes": [], "model_type": "qwen3_5"},
    }


def _minicpm(ids: Ids, vocabulary: int) -> dict[str, Any]:
    text = _qwen3_5(ids, vocabulary)["text_config"]
    rope = {"partial_rotary_factor": 1.0, "rope_theta": 10000000, "rope_type": "default"}
    return {
        "architectures": ["MiniCPMV4_6ForConditionalGeneration"],
        "bos_token_id": None,
        "drop_vision_last_layer": False,
        "eos_token_id": ids["<|endoftext|>"],
        "image_size": 1120,
        "model_type": "minicpmv4_6",
        "pad_token_id": None,
        "tie_word_embeddings": True,
        "transformers_version": "5.7.0",
        "use_cache": True,
        "vision_config": {
            "attention_dropout": 0.0,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 32,
            "image_size": 980,
            "intermediate_size": 48,
            "layer_norm_eps": 1e-06,
            "model_type": "minicpmv4_6_vision",
            "num_attention_heads": 4,
            "num_channels": 3,
            "num_hidden_layers": 2,
            "patch_size": 14,
        },
        "text_config": {**text, "rope_parameters": rope, "tie_word_embeddings": True},
        "insert_layer_id": 0,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
    }


def _glm4v(ids: Ids, vocabulary: int) -> dict[str, Any]:
    stops = ("<|endoftext|>", "<|user|>", "<|observation|>")
    return {
        "architectures": ["Glm4vForConditionalGeneration"],
        "model_type": "glm4v",
        "image_start_token_id": ids["<|begin_of_image|>"],
        "image_end_token_id": ids["<|end_of_image|>"],
        "video_start_token_id": ids["<|begin_of_video|>"],
        "video_end_token_id": ids["<|end_of_video|>"],
        "image_token_id": ids["<|image|>"],
        "video_token_id": ids["<|video|>"],
        "tie_word_embeddings": False,
        "transformers_version": "4.57.1",
        "text_config": {
            **_TEXT,
            "model_type": "glm4v_text",
            "vocab_size": vocabulary,
            "attention_bias": True,
            "attention_dropout": 0.0,
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": [ids[name] for name in stops],
            "image_token_id": ids["<|image|>"],
            "video_token_id": ids["<|video|>"],
            "dtype": "bfloat16",
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "rope_scaling": {"rope_type": "default", "mrope_section": _MROPE},
            "partial_rotary_factor": 0.5,
            "num_attention_heads": 2,  # half of each head of 16 is rotated
            "num_key_value_heads": 1,
        },
        "vision_config": {
            "hidden_size": 32,
            "depth": 2,
            "num_heads": 4,
            "attention_bias": False,
            "intermediate_size": 48,
            "hidden_act": "silu",
            "hidden_dropout_prob": 0.0,
            "initializer_range": 0.02,
            "image_size": 56,
            "patch_size": 14,
            "out_hidden_size": 32,
            "rms_norm_eps": 1e-05,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def _glm4v_moe(ids: Ids, vocabulary: int) -> dict[str, Any]:
    config = _glm4v(ids, vocabulary)
    experts = {
        "first_k_dense_replace": 1,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "model_type": "glm4v_moe_text",
        "moe_intermediate_size": 16,
        "n_group": 1,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 4,  # of twice the width of the layers together, nearly as published
        "num_experts_per_tok": 2,
        "num_key_value_heads": 2,
        "num_nextn_predict_layers": 0,
        "rope_parameters": {
            "mrope_section": _MROPE,
            "partial_rotary_factor": 0.5,
            "rope_theta": 500000,
            "rope_type": "default",
        },
        "routed_scaling_factor": 1.0,
        "topk_group": 1,
        "use_qk_norm": False,
    }
    by_transformers_4 = ("rope_theta", "rope_scaling", "image_token_id", "video_token_id")
    text = {k: one for k, one in config["text_config"].items() if k not in by_transformers_4}
    return {
        **config,
        "architectures": ["Glm4vMoeForConditionalGeneration"],
        "model_type": "glm4v_moe",
        "transformers_version": "5.0.0rc0",
        "text_config": {**text, **experts},
        "vision_config": {**config["vision_config"], "model_type": "glm4v_moe_vision"},
    }


def _internvl(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": 4,
        "image_token_id": ids["<IMG_CONTEXT>"],
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": {
            **_TEXT,
            "architectures": ["Qwen2ForCausalLM"],
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "model_type": "qwen2",
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "torch_dtype": "bfloat16",
            "use_sliding_window": False,
            "vocab_size": vocabulary,
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.0.dev0",
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "attention_bias": True,
            "hidden_act": "gelu",
            "hidden_size": 32,
            "image_size": [56, 56],
            "intermediate_size": 48,
            "model_type": "internvl_vision",
            "norm_type": "layer_norm",
            "num_attention_heads": 4,
            "num_channels": 3,
            "num_hidden_layers": 2,
            "patch_size": [14, 14],
            "use_absolute_position_embeddings": True,
            "use_mean_pooling": True,
            "use_qk_norm": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def _llava_onevision(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": [[56, 56], [56, 112], [112, 56], [112, 112]],
        "image_token_index": ids["<image>"],
        "model_type": "llava_onevision",
        "projector_hidden_act": "gelu",
        "text_config": {
            **_TEXT,
            "_name_or_path": "Qwen/Qwen2-7B-Instruct",
            "architectures": ["Qwen2ForCausalLM"],
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "model_type": "qwen2",
            "rope_theta": 1000000.0,
            "torch_dtype": "bfloat16",
            "vocab_size": vocabulary,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.44.0.dev0",
        "use_image_newline_parameter": True,
        "video_token_index": ids["<video>"],
        "vision_aspect_ratio": "anyres_max_9",
        "vision_config": {**_SIGLIP, "image_size": 56},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


def _gemma3(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": ids["<start_of_image>"],
        "eoi_token_index": ids["<end_of_image>"],
        "eos_token_id": [ids["<eos>"], ids["<end_of_turn>"]],
        "image_token_index": ids["<image_soft_token>"],
        "initializer_range": 0.02,
        "mm_tokens_per_image": 4,
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "model_type": "gemma3_text",
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 24,
            "sliding_window_pattern": 2,
            "vocab_size": vocabulary,
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": {**_SIGLIP, "image_size": 56},
    }


def _gemma4(ids: Ids, vocabulary: int) -> dict[str, Any]:
    """As transformers' conversion writes `gemma-4-e4b` (convert_gemma4_weights.py)."""
    norms = {"rms_norm_eps": 1e-06, "initializer_range": 0.02}
    no_experts = dict.fromkeys(("moe_intermediate_size", "num_experts", "top_k_experts"))
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "audio_config": {
            **norms,
            "attention_chunk_size": 12,
            "attention_context_left": 13,
            "attention_context_right": 0,
            "attention_invalid_logits_value": -1000000000.0,
            "attention_logit_cap": 50.0,
            "conv_kernel_size": 5,
            "dtype": "bfloat16",
            "gradient_clipping": 10000000000.0,
            "hidden_act": "silu",
            "hidden_size": 32,
            "model_type": "gemma4_audio",
            "num_attention_heads": 4,
            "num_hidden_layers": 1,
            "output_proj_dims": 24,
            "residual_weight": 0.5,
            "subsampling_conv_channels": [8, 4],
            "use_clipped_linears": True,
        },
        "audio_token_id": ids["<|audio|>"],
        "boa_token_id": ids["<|audio>"],
        "boi_token_id": ids["<|image>"],
        "dtype": "bfloat16",
        "eoa_token_id": ids["<audio|>"],
        "eoa_token_index": ids["<audio|>"],
        "eoi_token_id": ids["<image|>"],
        "eos_token_id": [ids["<eos>"], ids["<turn|>"]],
        "image_token_id": ids["<|image|>"],
        "initializer_range": 0.02,
        "model_type": "gemma4",
        "text_config": {
            **norms,
            **no_experts,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attention_k_eq_v": False,
            "bos_token_id": ids["<bos>"],
            "dtype": "bfloat16",
            "enable_moe_block": False,
            "eos_token_id": ids["<eos>"],
            "final_logit_softcapping": 30.0,
            "global_head_dim": 16,
            "head_dim": 8,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 32,
            "hidden_size_per_layer_input": 8,
            "intermediate_size": 48,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "max_position_embeddings": 131072,
            "model_type": "gemma4_text",
            "num_attention_heads": 4,
            "num_global_key_value_heads": None,
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "num_kv_shared_layers": 2,
            "pad_token_id": ids["<pad>"],
            "rope_parameters": {
                "full_attention": {
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 1000000.0,
                    "rope_type": "proportional",
                },
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            },
            "sliding_window": 24,
            "tie_word_embeddings": True,
            "use_bidirectional_attention": None,
            "use_cache": True,
            "use_double_wide_mlp": False,
            "vocab_size": vocabulary,
            "vocab_size_per_layer_input": vocabulary,
        },
        "tie_word_embeddings": True,
        "transformers_version": "5.5.0.dev0",
        "video_token_id": ids["<|video|>"],
        "vision_config": {
            **norms,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "default_output_length": 70,
            "dtype": "bfloat16",
            "global_head_dim": 8,
            "head_dim": 8,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 32,
            "intermediate_size": 48,
            "max_position_embeddings": 131072,
            "model_type": "gemma4_vision",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 4,
            "patch_size": 16,
            "pooling_kernel_size": 3,
            "position_embedding_size": 128,
            "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
            "standardize": False,
            "use_clipped_linears": True,
        },
        "vision_soft_tokens_per_image": 70,
    }


def _of_sharing_layers(config: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    """Keys and values of Gemma 4's last layers, which attend to those of earlier ones instead."""
    text = config["text_config"]
    unread: dict[str, Sequence[int]] = {}
    for number in range(text["num_hidden_layers"])[-text["num_kv_shared_layers"] :]:
        is_full = text["layer_types"][number] == "full_attention"
        side = text["global_head_dim" if is_full else "head_dim"]
        layer = f"model.language_model.layers.{number}.self_attn"
        for name in ("k_proj", "v_proj"):
            shape = (side * text["num_key_value_heads"], text["hidden_size"])
            unread[f"{layer}.{name}.weight"] = shape
        unread[f"{layer}.k_norm.weight"] = (side,)
    return unread


def _molmo2(ids: Ids, vocabulary: int) -> dict[str, Any]:
    numbers = {
        "attention_dropout": 0.0,
        "attn_implementation": "sdpa",
        "initializer_range": 0.02,
        "residual_dropout": 0.0,
    }
    heads = {"head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 4}
    return {
        "adapter_config": {
            **numbers,
            **heads,
            "float32_attention": True,
            "hidden_act": "silu",
            "hidden_size": 32,
            "image_feature_dropout": 0.0,
            "intermediate_size": 48,
            "model_type": "molmo2",
            "pooling_attention_mask": True,
            "text_hidden_size": 32,
            "vit_layers": [-2, -4],
        },
        "architectures": ["Molmo2ForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_molmo2.Molmo2Config",
            "AutoModelForImageTextToText": "modeling_molmo2.Molmo2ForConditionalGeneration",
        },
        "dtype": "float32",
        "frame_end_token_id": ids["<frame_end>"],
        "frame_start_token_id": ids["<frame_start>"],
        "image_col_id": ids["<im_col>"],
        "image_end_token_id": ids["<im_end>"],
        "image_high_res_id": ids["<im_patch>"],
        "image_low_res_id": ids["<im_low>"],
        "image_patch_id": ids["<im_patch>"],
        "image_start_token_id": ids["<im_start>"],
        "initializer_range": 0.02,
        "low_res_image_start_token_id": ids["<low_res_im_start>"],
        "model_type": "molmo2",
        "text_config": {
            **numbers,
            **heads,
            "additional_vocab_size": 16,
            "embedding_dropout": 0.0,
            "hidden_act": "silu",
            "hidden_size": 32,
            "intermediate_size": 48,
            "layer_norm_eps": 1e-06,
            "max_position_embeddings": 4096,
            "model_type": "molmo2_text",
            "norm_after": False,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "qk_norm_type": "qwen3",
            "qkv_bias": False,
            "rope_scaling": None,
            "rope_scaling_layers": None,
            "rope_theta": 1000000.0,
            "use_cache": True,
            "use_qk_norm": True,
            "vocab_size": ids["<im_start>"],  # those of images have embeddings of their own
        },
        "tie_word_embeddings": False,
        "transformers_version": "4.57.1",
        "use_cache": True,
        "use_frame_special_tokens": False,
        "vit_config": {
            **numbers,
            **heads,
            "float32_attention": True,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 32,
            "image_default_input_size": [140, 140],
            "image_num_pos": 100,
            "image_patch_size": 14,
            "intermediate_size": 48,
            "layer_norm_eps": 1e-06,
            "model_type": "molmo2",
            "num_hidden_layers": 4,  # the files have three, as many as are read
        },
    }


def _mllama(ids: Ids, vocabulary: int) -> dict[str, Any]:
    stops = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "image_token_index": ids["<|image|>"],
        "model_type": "mllama",
        "text_config": {
            **_TEXT,
            "bos_token_id": ids["<|begin_of_text|>"],
            "cross_attention_layers": [1, 3],
            "dropout": 0,
            "eos_token_id": [ids[name] for name in stops],
            "model_type": "mllama_text_model",
            "num_hidden_layers": 4,
            "pad_token_id": ids["<|finetune_right_pad_id|>"],
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 1024,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            # <|image|> has an input embedding and no output: it is the one beyond.
            "vocab_size": ids["<|image|>"],
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0",
        "vision_config": {
            "attention_heads": 4,
            "hidden_act": "gelu",
            "hidden_size": 32,
            "image_size": 56,
            "intermediate_layers_indices": [0],
            "intermediate_size": 48,
            "max_num_tiles": 4,
            "model_type": "mllama_vision_model",
            "norm_eps": 1e-05,
            "num_channels": 3,
            "num_global_layers": 1,
            "num_hidden_layers": 2,
            "patch_size": 14,
            "supported_aspect_ratios": [
                *([1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]),
            ],
            "torch_dtype": "bfloat16",
            "vision_output_dim": 64,
        },
    }


def _smolvlm(ids: Ids, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "image_token_id": ids["<image>"],
        "model_type": "smolvlm",
        "pad_token_id": 128002,
        "scale_factor": 2,
        "text_config": {
            **_TEXT,
            "architectures": ["VLlama3ForCausalLM"],
            "head_dim": 8,
            "is_llama_config": True,
            "model_type": "llama",
            "neftune_noise_alpha": 0.0,
            "num_key_value_heads": 4,
            "pad_token_id": ids["<|im_end|>"],
            "pixel_shuffle_factor": 2,
            "qk_layer_norms": False,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_theta": 130000,
            "torch_dtype": "bfloat16",
            "use_resampler": False,
            "vocab_size": vocabulary,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.47.1",
        "use_cache": False,
        "use_reentrant_checkpointing": False,
        "vision_config": {
            "hidden_size": 32,
            "image_size": 56,
            "intermediate_size": 48,
            "max_image_size": {"longest_edge": 56},
            "model_type": "smolvlm_vision",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "patch_size": 14,
            "size": {"longest_edge": 224},
            "tie_word_embeddings": False,
            "use_base_siglip": False,
        },
        "vocab_size": vocabulary,
    }


_QWEN_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_QWEN3_FILES = {
    "preprocessor_config.json": {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        **_HALVES,
        "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast",
    },
    "video_preprocessor_config.json": {
        "size": {"longest_edge": 25165824, "shortest_edge": 4096},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        **_HALVES,
        "processor_class": "Qwen3VLProcessor",
        "video_processor_type": "Qwen3VLVideoProcessor",
    },
}
_GLM = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>"),
    *("<|user|>", "<|assistant|>", "<|observation|>", "<|begin_of_image|>"),
    *("<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>"),
    "<|video|>",
)
_GLM_TEMPLATE = (
    "[gMASK]<sop>{%- for message in messages -%}{{ '<|' + message['role'] + '|>\\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}"
    "<|begin_of_image|><|image|><|end_of_image|>{%- elif 'text' in part -%}"
    "{{ part['text'] }}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"
)


def _glm_files(family: str) -> dict[str, dict[str, Any]]:
    files = {}
    for kind, of, longest in (("image", "", 9633792), ("video", "video_", 47040000)):
        files[f"{of}preprocessor_config.json"] = {
            "size": {"shortest_edge": 12544, "longest_edge": longest},
            "do_rescale": True,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            **_CLIP_MEAN,
            f"{kind}_processor_type": f"{family}{kind.capitalize()}Processor",
            "processor_class": f"{family}Processor",
        }
    return files


_GEMMA4_NAMED = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "sot_token": "<|turn>",
    "eot_token": "<turn|>",
    "soc_token": "<|channel>",
    "eoc_token": "<channel|>",
    "think_token": "<|think|>",
    "escape_token": '<|"|>',
    "str_token": "<|tool_response>",
    "etr_token": "<tool_response|>",
    "stc_token": "<|tool_call>",
    "etc_token": "<tool_call|>",
    "std_token": "<|tool>",
    "etd_token": "<tool|>",
}
_GEMMA4_IMAGES = {
    "do_convert_rgb": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.0, 0.0, 0.0],
    "image_std": [1.0, 1.0, 1.0],
    "max_soft_tokens": 70,
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
}
_MOLMO = {
    f"Auto{kind}": f"{module}_molmo2.Molmo2{kind}"
    for kind, module in (
        ("ImageProcessor", "image_processing"),
        ("VideoProcessor", "video_processing"),
        ("Processor", "processing"),
    )
}
"""Code beside the weights, which is not run."""
_VISION_TOWER = {r"^vision_tower\.": "vision_tower.vision_model."}

FOLDERS = (
    HubFolder(
        "qwen2.5-vl-7b",
        _qwen2_5_vl,
        _QWEN,
        _QWEN_TOKENS,
        _chatml("<|vision_start|><|image_pad|><|vision_end|>"),
        "chat_template.json",
        {
            "preprocessor_config.json": {
                "min_pixels": 3136,
                "max_pixels": 12845056,
                "patch_size": 14,
                "temporal_patch_size": 2,
                "merge_size": 2,
                **_CLIP_MEAN,
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2_5_VLProcessor",
            }
        },
        tokenizer_class="Qwen2Tokenizer",
        generation={"repetition_penalty": 1.05, "temperature": 0.000001, "do_sample": True},
        starts_with=frozenset({"model.embed_tokens", "model.layers", "model.norm", "visual"}),
    ),
    HubFolder(
        "qwen3-vl-8b-thinking",
        _qwen3_vl,
        _QWEN,
        _QWEN_TOKENS,
        _chatml("<|vision_start|><|image_pad|><|vision_end|>", opens_thinking=True),
        "chat_template.json",
        _QWEN3_FILES,
        plain_added=("<think>", "</think>"),
        tokenizer_class="Qwen2Tokenizer",
        generation={"do_sample": True, "top_k": 20, "top_p": 0.95, "temperature": 0.8},
        starts_with=frozenset({"model.language_model", "model.visual"}),
    ),
    HubFolder(
        "qwen3.5-9b",
        _qwen3_5,
        _QWEN,
        _QWEN_TOKENS,
        _chatml("<|vision_start|><|image_pad|><|vision_end|>", opens_thinking=True),
        "chat_template.jinja",
        _QWEN3_FILES,
        plain_added=("<think>", "</think>"),
        tokenizer_class="Qwen2Tokenizer",
        generation={"do_sample": True, "top_k": 20, "top_p": 0.95, "temperature": 1.0},
        starts_with=frozenset({"model.language_model", "model.visual"}),
    ),
    HubFolder(
        "minicpm-v-4.6",
        _minicpm,
        (
            *_QWEN,
            *("<unk>", "<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>"),
        ),
        {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<unk>",
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "image_start_token": "<image>",
            "image_end_token": "</image>",
            "slice_start_token": "<slice>",
            "slice_end_token": "</slice>",
            "image_id_start_token": "<image_id>",
            "image_id_end_token": "</image_id>",
        },
        _chatml("<|image_pad|>\\n").replace(
            "assistant\\n", "assistant\\n<think>\\n\\n</think>\\n\\n"
        ),
        "chat_template.jinja",
        {
            "preprocessor_config.json": {
                "image_processor_type": "MiniCPMV4_6ImageProcessor",
                "processor_class": "MiniCPMV4_6Processor",
                "max_slice_nums": 9,
                "scale_resolution": 448,
                "patch_size": 14,
                "use_image_id": True,
                "slice_mode": True,
                **_HALVES,
            },
        },
        plain_added=("<think>", "</think>"),
        tokenizer_class="Qwen2Tokenizer",
        generation={
            "do_sample": True,
            "temperature": 0.7,
            "top_k": 0,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
        },
        starts_with=frozenset({"model.language_model", "model.vision_tower", "model.merger"}),
    ),
    HubFolder(
        "glm-4.1v-9b-thinking",
        _glm4v,
        _GLM,
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        _GLM_TEMPLATE,
        "chat_template.jinja",
        _glm_files("Glm4v"),
        plain_added=("<think>", "</think>", "<answer>", "</answer>"),
        generation={"do_sample": True, "top_k": 2, "top_p": 0.6, "temperature": 0.8},
        starts_with=frozenset({"model.language_model", "model.visual"}),
    ),
    HubFolder(
        "glm-4.6v",
        _glm4v_moe,
        (*_GLM, "<|code_prefix|>", "<|begin_of_box|>", "<|end_of_box|>", "/nothink"),
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        # Thinking is left to the model, and switched off by a token of the user's and an empty one.
        _GLM_TEMPLATE.replace("<|assistant|>\\n", "<|assistant|>"),
        "chat_template.jinja",
        _glm_files("Glm46V"),
        plain_added=("<think>", "</think>", "<tool_call>", "</tool_call>"),
        generation={"do_sample": True, "top_k": 2, "top_p": 0.6, "temperature": 0.8},
        stops=("<|endoftext|>", "<|user|>", "<|observation|>"),
        starts_with=frozenset({"model.language_model", "model.visual"}),
    ),
    HubFolder(
        "internvl3-8b",
        _internvl,
        (*_QWEN[:3], "<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<video>"),
        {
            **_QWEN_TOKENS,
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        _chatml("<IMG_CONTEXT>\\n"),
        "chat_template.jinja",
        {
            "preprocessor_config.json": {
                "crop_size": None,
                "crop_to_patches": False,
                "data_format": "channels_first",
                "default_to_square": True,
                "device": None,
                "do_center_crop": None,
                "do_convert_rgb": True,
                "do_normalize": True,
                "do_rescale": True,
                "do_resize": True,
                **_IMAGENET,
                "image_processor_type": "GotOcr2ImageProcessorFast",
                "input_data_format": None,
                "max_patches": 12,
                "min_patches": 1,
                "processor_class": "InternVLProcessor",
                "resample": 3,
                "rescale_factor": 0.00392156862745098,
                "return_tensors": None,
                "size": {"height": 56, "width": 56},
            },
            "processor_config.json": {
                "image_seq_length": 4,
                "processor_class": "InternVLProcessor",
            },
            "video_preprocessor_config.json": {
                **_IMAGENET,
                "do_normalize": True,
                "do_rescale": True,
                "do_resize": True,
                "size": {"height": 56, "width": 56},
                "processor_class": "InternVLProcessor",
                "video_processor_type": "InternVLVideoProcessor",
            },
        },
        tokenizer_class="Qwen2Tokenizer",
        starts_with=frozenset({"language_model", "vision_tower", "multi_modal_projector"}),
    ),
    HubFolder(
        "llava-onevision-7b",
        _llava_onevision,
        (*_QWEN[:3], "<image>", "<video>"),
        _QWEN_TOKENS,
        _chatml("<image>\\n"),
        "chat_template.json",
        {
            "preprocessor_config.json": {
                "do_convert_rgb": True,
                "do_normalize": True,
                "do_pad": True,
                "do_rescale": True,
                "do_resize": True,
                "image_grid_pinpoints": [[56, 56], [56, 112], [112, 56], [112, 112]],
                **_HALVES,
                "image_processor_type": "LlavaOnevisionImageProcessor",
                "processor_class": "LlavaOnevisionProcessor",
                "resample": 3,
                "rescale_factor": 0.00392156862745098,
                "size": {"height": 56, "width": 56},
            },
            "processor_config.json": {
                "image_token": "<image>",
                "num_image_tokens": 16,
                "processor_class": "LlavaOnevisionProcessor",
                "video_token": "<video>",
                "vision_feature_select_strategy": "full",
            },
        },
        tokenizer_class="Qwen2Tokenizer",
        weight_names=_VISION_TOWER,
        starts_with=frozenset(
            {
                "image_newline",
                "language_model",
                "vision_tower.vision_model",
                "multi_modal_projector",
            }
        ),
    ),
    HubFolder(
        "smolvlm2-2.2b",
        _smolvlm,
        (
            *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<global-img>"),
            *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
            *("<fake_token_around_image>", "<image>", "<end_of_utterance>"),
        ),
        {
            "bos_token": "<|im_start|>",
            "eos_token": "<end_of_utterance>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "image_token": "<image>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
        "<|im_start|>{%- for message in messages -%}{{ message['role'] | capitalize }}"
        "{%- if message['content'][0]['type'] == 'image' -%}{{ ':' }}{%- else -%}{{ ': ' }}"
        "{%- endif -%}{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'text' -%}{{ part['text'] }}"
        "{%- elif part['type'] == 'image' -%}{{ '<image>' }}{%- endif -%}{%- endfor -%}"
        "{{ '<end_of_utterance>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}",
        "chat_template.json",
        {
            "preprocessor_config.json": {
                "do_convert_rgb": True,
                "do_image_splitting": True,
                "do_normalize": True,
                "do_pad": True,
                "do_rescale": True,
                "do_resize": True,
                **_HALVES,
                "image_processor_type": "SmolVLMImageProcessor",
                "max_image_size": {"longest_edge": 56},
                "processor_class": "SmolVLMProcessor",
                "resample": 1,
                "rescale_factor": 0.00392156862745098,
                "size": {"longest_edge": 224},
                "video_sampling": {
                    "fps": 1,
                    "max_frames": 64,
                    "video_size": {"longest_edge": 56},
                },
            },
            "processor_config.json": {"image_seq_len": 4, "processor_class": "SmolVLMProcessor"},
        },
        starts_with=frozenset({"model.text_model", "model.vision_model", "model.connector"}),
    ),
    HubFolder(
        "gemma-3-12b",
        _gemma3,
        (
            *("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
            *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        ),
        {
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        "{{ bos_token }}{%- set start = '' -%}"
        "{%- if messages[0]['role'] == 'system' -%}"
        "{%- set start = (messages[0]['content'] if messages[0]['content'] is string else"
        " messages[0]['content'][0]['text']) + '\\n\\n' -%}{%- set messages = messages[1:] -%}"
        "{%- endif -%}"
        "{%- for message in messages -%}{{ '<start_of_turn>' + message['role'] + '\\n' }}"
        "{%- if loop.first -%}{{ start }}{%- endif -%}"
        "{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- else -%}"
        "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}"
        "{{ '<start_of_image>' }}{%- else -%}{{ part['text'] | trim }}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}{{ '<end_of_turn>\\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}",
        "tokenizer_config.json",
        {
            "preprocessor_config.json": {
                "do_convert_rgb": None,
                "do_normalize": True,
                "do_pan_and_scan": None,
                "do_rescale": True,
                "do_resize": True,
                **_HALVES,
                "image_processor_type": "Gemma3ImageProcessor",
                "image_seq_length": 4,
                "pan_and_scan_max_num_crops": None,
                "pan_and_scan_min_crop_size": None,
                "pan_and_scan_min_ratio_to_activate": None,
                "processor_class": "Gemma3Processor",
                "resample": 2,
                "rescale_factor": 0.00392156862745098,
                "size": {"height": 56, "width": 56},
            },
            "processor_config.json": {"image_seq_length": 4, "processor_class": "Gemma3Processor"},
        },
        tokenizer_class="GemmaTokenizer",
        generation={
            "do_sample": True,
            "top_k": 64,
            "top_p": 0.95,
            "cache_implementation": "hybrid",
        },
        weight_names=_VISION_TOWER,
        starts_with=frozenset(
            {"language_model", "vision_tower.vision_model", "multi_modal_projector"}
        ),
    ),
    HubFolder(
        "gemma-4-e4b",
        _gemma4,
        (
            *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *_GEMMA4_NAMED.values()),
            "<|video|>",
        ),
        {
            "backend": "tokenizers",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "extra_special_tokens": ["<|video|>"],
            "mask_token": "<mask>",
            "model_max_length": 1000000000000000019884624838656,
            "pad_token": "<pad>",
            "padding_side": "left",
            "processor_class": "Gemma4Processor",
            "unk_token": "<unk>",
            **_GEMMA4_NAMED,
        },
        "{%- set thinks = enable_thinking | default(false) -%}{{ bos_token }}"
        "{%- set system = messages[0]['role'] == 'system' -%}{%- if thinks or system -%}"
        "{{ '<|turn>system\\n' }}{%- if thinks -%}{{ '<|think|>\\n' }}{%- endif -%}"
        "{%- if system -%}{%- if messages[0]['content'] is string -%}"
        "{{ messages[0]['content'] | trim }}{%- else -%}"
        "{%- for part in messages[0]['content'] -%}{{ part['text'] | trim + ' ' }}{%- endfor -%}"
        "{%- endif -%}{%- set messages = messages[1:] -%}{%- endif -%}{{ '<turn|>\\n' }}"
        "{%- endif -%}{%- for message in messages -%}"
        "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
        "{{ '<|turn>' + role + '\\n' }}"
        "{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- else -%}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'text' -%}{{ part['text'] | trim }}"
        "{%- elif part['type'] in ['image', 'image_url'] -%}{{ '<|image|>' }}"
        "{%- elif part['type'] in ['audio', 'input_audio'] -%}{{ '<|audio|>' }}"
        "{%- elif part['type'] == 'video' -%}{{ '<|video|>' }}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}{{ '<turn|>\\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|turn>model\\n' }}{%- endif -%}",
        "chat_template.jinja",
        {
            "processor_config.json": {
                "audio_ms_per_token": 40,
                "audio_seq_length": 750,
                "feature_extractor": {
                    "dither": 0.0,
                    "feature_extractor_type": "Gemma4AudioFeatureExtractor",
                    "feature_size": 128,
                    "fft_length": 512,
                    "fft_overdrive": False,
                    "frame_length": 320,
                    "hop_length": 160,
                    "input_scale_factor": 1.0,
                    "max_frequency": 8000.0,
                    "mel_floor": 0.001,
                    "min_frequency": 0.0,
                    "padding_side": "right",
                    "padding_value": 0.0,
                    "per_bin_mean": None,
                    "per_bin_stddev": None,
                    "preemphasis": 0.0,
                    "preemphasis_htk_flavor": True,
                    "return_attention_mask": True,
                    "sampling_rate": 16000,
                },
                "image_processor": {
                    **_GEMMA4_IMAGES,
                    "do_normalize": False,
                    "image_processor_type": "Gemma4ImageProcessor",
                    "image_seq_length": 70,
                },
                "image_seq_length": 70,
                "processor_class": "Gemma4Processor",
                "video_processor": {
                    **_GEMMA4_IMAGES,
                    "do_normalize": True,
                    "do_sample_frames": True,
                    "num_frames": 32,
                    "return_metadata": False,
                    "video_processor_type": "Gemma4VideoProcessor",
                },
            },
        },
        tokenizer_class="GemmaTokenizer",
        generation={"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95},
        stops=("<eos>", "<turn|>", "<|tool_response>"),
        starts_with=frozenset(
            {
                "model.language_model",
                "model.vision_tower",
                "model.embed_vision",
                "model.audio_tower",
                "model.embed_audio",
            }
        ),
        unread=_of_sharing_layers,
        by_transformers_5=True,
    ),
    HubFolder(
        "molmo2-8b",
        _molmo2,
        (
            *_QWEN,
            *("|<EXTRA_TOKENS_0>|", "<im_start>", "<im_end>", "<im_patch>", "<im_col>"),
            *("<low_res_im_start>", "<|image|>", "<im_low>", "<frame_start>", "<frame_end>"),
            "<|video|>",
        ),
        {
            "auto_map": {"AutoProcessor": _MOLMO["AutoProcessor"]},
            "bos_token": "<|im_end|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "processor_class": "Molmo2Processor",
        },
        "{%- set count = namespace(images=0) -%}{%- for message in messages -%}"
        "{%- if message['content'] is not string -%}{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'image' -%}{%- set count.images = count.images + 1 -%}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}{%- endfor -%}"
        "{%- for number in range(count.images) -%}"
        "{%- if count.images > 1 -%}{{ 'Image ' ~ (number + 1) }}{%- endif -%}{{ '<|image|>' }}"
        "{%- endfor -%}{%- for message in messages -%}"
        "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{%- endif -%}"
        "{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
        "{%- for part in message['content'] -%}{%- if part['type'] == 'text' -%}{{ part['text'] }}"
        "{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}",
        "chat_template.jinja",
        {
            "preprocessor_config.json": {
                "auto_map": _MOLMO,
                "do_convert_rgb": True,
                "image_processor_type": "Molmo2ImageProcessor",
                **_HALVES,
                "max_crops": 2,
                "overlap_margins": [1, 1],
                "patch_size": 14,
                "pooling_size": [2, 2],
                "processor_class": "Molmo2Processor",
                "resample": 2,
                "size": {"height": 140, "width": 140},
            },
            "processor_config.json": {
                "auto_map": {"AutoProcessor": _MOLMO["AutoProcessor"]},
                "image_use_col_tokens": True,
                "processor_class": "Molmo2Processor",
                "use_frame_special_tokens": False,
                "use_single_crop_col_tokens": False,
                "use_single_crop_start_token": True,
                "video_use_col_tokens": False,
            },
            "video_preprocessor_config.json": {
                "auto_map": {k: one for k, one in _MOLMO.items() if k != "AutoImageProcessor"},
                "data_format": "channels_first",
                "default_to_square": True,
                "do_convert_rgb": True,
                "do_normalize": True,
                "do_rescale": True,
                "do_resize": True,
                "do_sample_frames": True,
                "fps": None,
                "frame_sample_mode": "uniform_last_frame",
                **_HALVES,
                "max_fps": 2.0,
                "num_frames": 384,
                "patch_size": 14,
                "pooling_size": [3, 3],
                "processor_class": "Molmo2Processor",
                "resample": 2,
                "rescale_factor": 0.00392156862745098,
                "return_metadata": False,
                "sampling_fps": 2,
                "size": {"height": 140, "width": 140},
                "video_metadata": None,
                "video_processor_type": "Molmo2VideoProcessor",
            },
        },
        tokenizer_class="Qwen2Tokenizer",
        starts_with=frozenset({"model.transformer", "model.vision_backbone"}),
        needs=("torchvision",),
    ),
    HubFolder(
        "llava-cot",
        _mllama,
        (
            *("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"),
            *("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
            *("<|python_tag|>", "<|image|>"),
        ),
        {
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<|finetune_right_pad_id|>",
        },
        "{{ bos_token }}{%- set with_image = namespace(there=false) -%}"
        "{%- for message in messages -%}{%- if message['content'] is not string -%}"
        "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}"
        "{%- set with_image.there = true -%}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endfor -%}"
        "{%- if with_image.there and messages[0]['role'] == 'system' -%}"
        "{{ raise_exception('Prompting with images is incompatible with system messages.') }}"
        "{%- endif -%}"
        "{%- for message in messages -%}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
        "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
        "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}"
        "{{ '<|image|>' }}{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}{%- endif -%}"
        "{{ '<|eot_id|>' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}",
        "chat_template.json",
        {
            "preprocessor_config.json": {
                "do_convert_rgb": True,
                "do_normalize": True,
                "do_pad": True,
                "do_rescale": True,
                "do_resize": True,
                **_CLIP_MEAN,
                "image_processor_type": "MllamaImageProcessor",
                "max_image_tiles": 4,
                "processor_class": "MllamaProcessor",
                "resample": 2,
                "rescale_factor": 0.00392156862745098,
                "size": {"height": 56, "width": 56},
            },
        },
        generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        starts_with=frozenset({"language_model", "vision_model", "multi_modal_projector"}),
    ),
)
_OF_TYPE = {"gemma4": "gemma-4-e4b", "smolvlm": "smolvlm2-2.2b", "molmo2": "molmo2-8b"}
_LEFT_OUT = {
    one for kind, one in _OF_TYPE.items() if kind in UNSERVED or kind not in CONFIG_MAPPING
}
FOLDERS = tuple(folder for folder in FOLDERS if folder.profile not in _LEFT_OUT)
BY_PROFILE = {folder.profile: folder for folder in FOLDERS}


def write_hub_folder(
    published: HubFolder,
    folder: Path,
    *,
    weights: bool = True,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write the folder; the weights are the same each time.

    Args:
        tokenizer: the model's real one; without it a small one with the same special tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or _tokenizer(published)
    ids = {name: tokenizer.token_to_id(name) for name in published.special}
    config = published.config(ids, tokenizer.get_vocab_size())
    _write(folder / "config.json", config)
    tokenizer.save(str(folder / "tokenizer.json"))
    told: dict[str, Any] = {"tokenizer_class": published.tokenizer_class}
    if not published.by_transformers_5:
        told["added_tokens_decoder"] = {
            str(tokenizer.token_to_id(name)): {"content": name, "special": name in ids}
            for name in (*published.special, *published.plain_added)
        }
        told |= {"clean_up_tokenization_spaces": False, "model_max_length": 131072}
    told |= published.tokens
    if published.template_file == "chat_template.jinja":
        (folder / "chat_template.jinja").write_text(published.template, encoding="utf-8")
    elif published.template_file == "chat_template.json":
        _write(folder / "chat_template.json", {"chat_template": published.template})
    else:
        told["chat_template"] = published.template
    _write(folder / "tokenizer_config.json", told)
    for name, content in published.files.items():
        _write(folder / name, content)
    generation = {**published.generation, "transformers_version": "4"}
    if published.stops:
        generation["eos_token_id"] = [ids[name] for name in published.stops]
    _write(folder / "generation_config.json", generation)
    if weights:
        _write_weights(published, folder)
    return folder


def qwen_tokenizer(ranks: Path) -> Tokenizer:
    """Build Qwen's tokenizer.json from the ranks of its tokens, with the published added tokens."""
    first = 151643  # of the added tokens, in `tokenizer_config.json` of Qwen2.5 and Qwen3
    special = {name: first + number for number, name in enumerate((*_QWEN, *_QWEN_PLAIN))}
    made = build_tokenizer(read_ranks(ranks), special, template="", names={}).backend_tokenizer
    tokenizer = Tokenizer(made.model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer, tokenizer.decoder = _qwen_splits(), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in _QWEN])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in _QWEN_PLAIN])
    return tokenizer


def as_pickles(folder: Path) -> Path:
    """Write the weights of a folder as repositories before safetensors have them, in shards."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    names = {
        file.name: file.name.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        for file in folder.glob("*.safetensors")
    }
    for old, new in names.items():
        torch.save(load_file(folder / old), folder / new)
        (folder / old).unlink()
    index["weight_map"] = {name: names[file] for name, file in index["weight_map"].items()}
    _write(folder / "pytorch_model.bin.index.json", index)
    (folder / "model.safetensors.index.json").unlink()
    return folder


def saved_by_transformers_5(folder: Path, target: Path) -> Path:
    """Save model and processor of a folder by the installed transformers.

    A processor saved where torchvision is has its part for videos within `processor_config.json`.
    """
    with without_video():
        processor = AutoProcessor.from_pretrained(folder)
    AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").save_pretrained(target)
    kind = type(processor)
    parts = kind.get_attributes()
    kind.get_attributes = classmethod(lambda _: [one for one in parts if one != "video_processor"])
    try:
        processor.save_pretrained(target)
    finally:
        del kind.get_attributes
    told = json.loads((target / "processor_config.json").read_text())
    if "video_processor" in parts:
        told["video_processor"] = {
            "do_resize": True,
            "size": {"shortest_edge": 3136, "longest_edge": 12845056},
            "video_processor_type": kind.__name__.replace("Processor", "VideoProcessor"),
        }
    _write(target / "processor_config.json", told)
    return target


def saved_by_transformers_4(folder: Path, target: Path) -> Path:
    """Write a folder as `save_pretrained` of transformers 4.57.3 writes it.

    Seen on what it made of these folders: `dtype` for `torch_dtype`, the configuration of the text
    nested and at the top, both names of the RoPE's type, the template and the parts of the
    tokenizer in files of their own. Names of weights are the repository's.
    """
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    if "text_config" not in config:
        vision = ("image", "video", "vision")
        told = {key: one for key, one in config.items() if not key.startswith(vision)}
        kept = {"model_type": f"{config['model_type']}_text", "sliding_window": None}
        layers = ["full_attention"] * config["num_hidden_layers"]
        config["text_config"] = {**told, **kept, "layer_types": layers}
    for part in (config, config["text_config"]):
        if "torch_dtype" in part:
            part["dtype"] = part.pop("torch_dtype")
        if "rope_scaling" in part:
            part["rope_scaling"] = {
                **part["rope_scaling"],
                "type": "default",
                "rope_type": "default",
            }
    config["transformers_version"] = "4.57.3"
    _write(target / "config.json", config)
    told = json.loads((target / "tokenizer.json").read_text())
    merges = "\n".join(" ".join(pair) for pair in told["model"]["merges"])
    (target / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    _write(target / "vocab.json", told["model"]["vocab"])
    _write(
        target / "added_tokens.json", {one["content"]: one["id"] for one in told["added_tokens"]}
    )
    names = json.loads((target / "tokenizer_config.json").read_text())
    special = {key: names[key] for key in ("eos_token", "pad_token")}
    _write(target / "special_tokens_map.json", special)
    template = json.loads((target / "chat_template.json").read_text())["chat_template"]
    (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    (target / "chat_template.json").unlink()
    return target


def _tokenizer(published: HubFolder) -> Tokenizer:
    """Train byte pairs on a few sentences; the added tokens come behind them, as on the hub."""
    if published.tokenizer_class == "GemmaTokenizer":
        return _gemma_tokenizer(published)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _qwen_splits()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([QUESTION, "How many red circles are there?"] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in published.special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in published.plain_added])
    return tokenizer


def _qwen_splits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gemma_tokenizer(published: HubFolder) -> Tokenizer:
    """Make one as it comes of SentencePiece: blanks are a letter, what is unknown becomes bytes."""
    first = ("<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)))
    # Many more than bytes: random weights write texts that differ, and not bytes of no character.
    letters = ("\u2581", *sorted(set(QUESTION.replace(" ", ""))), *map(chr, range(0xC0, 0x700)))
    merges = [("\u2581", "i"), ("\u2581", "p"), ("t", "h"), ("\u2581i", "s")]
    pieces = (*first, *letters, *(one + two for one, two in merges))
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in published.special])
    return tokenizer


def _write_weights(published: HubFolder, folder: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.08)
            elif not parameter.any():  # the gates of Mllama, closed as they are made
                parameter.fill_(0.3)
        for buffer in model.buffers():
            if buffer.isinf().any():  # the bounds of Gemma 4's linear layers, open as they are made
                buffer.clamp_(-4.0, 4.0)
    model.save_pretrained(folder / "saved", max_shard_size="100KB")
    saved = folder / "saved"
    index = json.loads((saved / "model.safetensors.index.json").read_text())["weight_map"]
    for file in saved.iterdir():
        if file.suffix != ".safetensors":
            file.unlink()
    named: dict[str, str] = {}
    for file in sorted(set(index.values())):
        state = {}
        for name, value in load_file(saved / file).items():
            for pattern, replacement in published.weight_names.items():
                name = re.sub(pattern, replacement, name)
            state[name] = value.to(torch.bfloat16)
            named[name] = file
        save_file(state, folder / file, {"format": "pt"})
        (saved / file).unlink()
    saved.rmdir()
    unread = published.unread(json.loads((folder / "config.json").read_text()))
    if unread:
        state = {name: torch.randn(*shape).bfloat16() for name, shape in unread.items()}
        save_file(state, folder / "model-unread.safetensors", {"format": "pt"})
        named |= dict.fromkeys(state, "model-unread.safetensors")
    stray = [
        n for n in named if n != "lm_head.weight" and not n.startswith(tuple(published.starts_with))
    ]
    assert not stray, stray
    _write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": named})


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
