"""The published configuration of Kimi-VL-A3B, known by heart: no weights, no network.

Source: `config.json` of moonshotai/Kimi-VL-A3B-Thinking-2506; the text model is Moonlight-16B-A3B
(https://arxiv.org/abs/2504.07491, section 2.1), the vision tower MoonViT-SO-400M.
"""

from __future__ import annotations

from typing import Any

IN_TOKEN_LIMIT = 16384
"""Most patches of an image, by the `preprocessor_config.json` of Thinking-2506: 3.2 million pixels,
4 times as many as the releases before it allow (model card)."""


def published() -> dict[str, Any]:
    """Return the content of the hub's `config.json`, as far as it decides the model's shape."""
    return {
        "model_type": "kimi_vl",
        "media_placeholder_token_id": 163605,
        "torch_dtype": "bfloat16",
        "text_config": {
            "vocab_size": 163840,
            "max_position_embeddings": 131072,
            "hidden_size": 2048,
            "intermediate_size": 11264,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "n_shared_experts": 2,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 2.446,
            "norm_topk_prob": True,
            "n_group": 1,
            "topk_group": 1,
            "kv_lora_rank": 512,
            "q_lora_rank": None,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 800000.0,
            "tie_word_embeddings": False,
            "bos_token_id": 163584,
            "eos_token_id": 163585,
            "pad_token_id": 163839,
        },
        "vision_config": {
            "model_type": "moonvit",
            "patch_size": 14,
            "init_pos_emb_height": 64,
            "init_pos_emb_width": 64,
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "merge_kernel_size": [2, 2],
        },
    }
