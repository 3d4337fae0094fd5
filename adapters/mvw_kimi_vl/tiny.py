"""A Kimi-VL or Kimi-K2.5 of a few thousand random weights and its processor, no download."""

from __future__ import annotations

from typing import Any

import torch
from mvw_hf.loading import read_published
from transformers import PreTrainedModel

from mvw_kimi_vl.model import CHECKPOINT, KimiVL
from mvw_kimi_vl.modeling import config_from_hub
from mvw_kimi_vl.processing import PLACEHOLDER, SPECIAL_TOKENS, KimiProcessor, kind_of
from mvw_kimi_vl.tokenizer import build_tokenizer

_SPECIAL = [*(name for name in SPECIAL_TOKENS if name != "[UNK]"), PLACEHOLDER]
_IDS = {name: 256 + number for number, name in enumerate(_SPECIAL)}
_LIMIT = 64
_TOWER = {
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
}


def tiny_kimi(adapter: KimiVL) -> tuple[PreTrainedModel, KimiProcessor]:
    """Build model and processor of Kimi-VL or Kimi-K2.5; the same weights each time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        config = config_from_hub(small_config(str(adapter.checkpoint)))
        model = adapter.model_class()(config).eval()
    kind = kind_of(config)
    tokenizer = build_tokenizer(
        {bytes([number]): number for number in range(256)},
        kind.tokens(_IDS),
        template=kind.template,
        names={"bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]"},
    )
    return model, KimiProcessor(tokenizer, kind.images(in_token_limit=_LIMIT))


def small_config(checkpoint: str = CHECKPOINT) -> dict[str, Any]:
    """Take a published `config.json` and make it small."""
    told = read_published(KimiVL.published, checkpoint)
    assert told is not None
    is_newer = checkpoint != CHECKPOINT
    told["in_token_limit"] = _LIMIT
    told["media_placeholder_token_id"] = _IDS[PLACEHOLDER]
    told["torch_dtype"] = "float32"
    told["text_config"] |= {
        "vocab_size": 256 + len(_SPECIAL),
        "max_position_embeddings": 1024,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "kv_lora_rank": 16,
        **({"q_lora_rank": 24} if told["text_config"]["q_lora_rank"] else {}),
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "bos_token_id": _IDS["[BOS]"],
        "eos_token_id": _IDS["[EOS]"],
        "pad_token_id": _IDS["[PAD]"],
        # The usual 0.02 makes every distribution flat, and any mistake too small to see.
        "initializer_range": 0.14,
    }
    told["vision_config"] |= {
        "init_pos_emb_height": 8,
        "init_pos_emb_width": 8,
        **{(f"vt_{name}" if is_newer else name): size for name, size in _TOWER.items()},
    }
    if is_newer:
        told["vision_config"] |= {"mm_hidden_size": 32, "text_hidden_size": 32}
    return told
