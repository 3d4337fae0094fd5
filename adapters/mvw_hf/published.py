"""Configurations of the checkpoints that the packaged profiles name, known without a network.

Each is the checkpoint's own `config.json` on the hub, as far as it shapes weights, cache or
vision tokens; what is left out is the default of its class in transformers. The totals of
parameters that follow from them are those that the hub shows for the checkpoints
(tests/cost/test_published.py).
"""

from __future__ import annotations

from typing import Any

_QWEN2_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "tie_word_embeddings": False,
}
"""The language model of several VLMs; their vocabularies differ. Source: `config.json` of
Qwen/Qwen2-7B-Instruct."""

_QWEN_VISION_IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}

_SIGLIP_SO400M: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "patch_size": 14,
    "vision_use_head": False,
}

_ONEVISION_SIDES = [384 * n for n in range(1, 7)]

PUBLISHED: dict[str, dict[str, Any]] = {
    # Source: config.json of Qwen/Qwen2.5-VL-7B-Instruct
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "model_type": "qwen2_5_vl",
        "text_config": {
            **_QWEN2_7B,
            "model_type": "qwen2_5_vl_text",
            "vocab_size": 152064,
            "max_position_embeddings": 128000,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [16, 24, 24],
            },
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
        "tie_word_embeddings": False,
        **_QWEN_VISION_IDS,
    },
    # Source: config.json of Qwen/Qwen3-VL-8B-Thinking
    "Qwen/Qwen3-VL-8B-Thinking": {
        "model_type": "qwen3_vl",
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
            "bos_token_id": 151643,
            "eos_token_id": 151645,
        },
        "vision_config": {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "out_hidden_size": 4096,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24],
        },
        "tie_word_embeddings": False,
        **_QWEN_VISION_IDS,
    },
    # Source: config.json of OpenGVLab/InternVL3-8B-hf
    "OpenGVLab/InternVL3-8B-hf": {
        "model_type": "internvl",
        "text_config": {**_QWEN2_7B, "vocab_size": 151674},
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "attention_bias": True,
            "image_size": [448, 448],
            "patch_size": [14, 14],
        },
        "image_token_id": 151667,
        "image_seq_length": 256,
        "downsample_ratio": 0.5,
        "tie_word_embeddings": False,
    },
    # Source: config.json of zai-org/GLM-4.1V-9B-Thinking
    "zai-org/GLM-4.1V-9B-Thinking": {
        "model_type": "glm4v",
        "text_config": {
            "vocab_size": 151552,
            "hidden_size": 4096,
            "intermediate_size": 13696,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "max_position_embeddings": 65536,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [8, 12, 12],
            },
            "pad_token_id": 151329,
            "eos_token_id": [151329, 151336, 151338, 151348],
        },
        "vision_config": {
            "depth": 24,
            "hidden_size": 1536,
            "intermediate_size": 13696,
            "num_heads": 12,
            "out_hidden_size": 4096,
            "image_size": 336,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "image_token_id": 151343,
        "video_token_id": 151344,
        "tie_word_embeddings": False,
    },
    # Source: config.json of google/gemma-3-12b-it
    "google/gemma-3-12b-it": {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "vocab_size": 262208,
            "hidden_size": 3840,
            "intermediate_size": 15360,
            "num_hidden_layers": 48,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "sliding_window": 1024,
            "query_pre_attn_scalar": 256,
            "max_position_embeddings": 131072,
        },
        "vision_config": {**_SIGLIP_SO400M, "num_hidden_layers": 27, "image_size": 896},
        "mm_tokens_per_image": 256,
        "image_token_index": 262144,
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
    },
    # Source: config.json of llava-hf/llava-onevision-qwen2-7b-ov-hf
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": {
        "model_type": "llava_onevision",
        "text_config": {**_QWEN2_7B, "vocab_size": 152128},
        "vision_config": {**_SIGLIP_SO400M, "num_hidden_layers": 26, "image_size": 384},
        "image_token_index": 151646,
        "video_token_index": 151647,
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "image_grid_pinpoints": [[h, w] for h in _ONEVISION_SIDES for w in _ONEVISION_SIDES],
        "tie_word_embeddings": False,
    },
}


def published(name: str) -> Any:
    """Make the configuration of a checkpoint by its hub id, or return None."""
    if name not in PUBLISHED:
        return None
    from transformers import AutoConfig

    known = dict(PUBLISHED[name])
    # Each checkpoint here is stored in bfloat16, but for LLaVA-OneVision's float16.
    dtype = "float16" if name.startswith("llava-hf/") else "bfloat16"
    return AutoConfig.for_model(known.pop("model_type"), **known, dtype=dtype)
