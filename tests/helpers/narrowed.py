"""Published configurations, and the same with fewer and narrower layers."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

from mvw_hf.model import HuggingFace
from mvw_hf.packages import needs_torchvision
from releases import UNSERVED
from transformers import CONFIG_MAPPING
from transformers.utils import is_torchvision_available

from mvw_cli import ModelSpec

_FOLDER = HuggingFace.published
_TOLD = {
    str(path.relative_to(_FOLDER).with_suffix("")): json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(_FOLDER.rglob("*.json"))
}
PUBLISHED = [name for name, told in _TOLD.items() if told["model_type"] in CONFIG_MAPPING]
"""Hub ids whose configuration the adapter `hf` knows, and this transformers too."""
_KINDS = {
    (_TOLD[name]["model_type"], _TOLD[name]["text_config"].get("model_type")): name
    for name in reversed(PUBLISHED)
    if is_torchvision_available() or not needs_torchvision(name, None, _TOLD[name])
}
KINDS = sorted(name for (kind, _), name in _KINDS.items() if kind not in UNSERVED)
"""One of them for each architecture, and for each kind of text model below it, as far as this
installation can prepare their images."""


def published(name: str) -> Any:
    """Return the configuration of a hub id."""
    return HuggingFace().shape(ModelSpec(model=name))


def narrow(config: Any) -> Any:
    """Take away layers and width; images, tiles, limits, vocabulary and token ids stay."""
    config = deepcopy(config)
    text, vision = config.get_text_config(), config.vision_config
    text.num_hidden_layers, text.hidden_size, text.intermediate_size = 2, 16, 16
    text.num_attention_heads = text.num_key_value_heads = 2
    vision.hidden_size, vision.intermediate_size = 16, 16
    vision.num_hidden_layers, vision.num_attention_heads = 1, 2
    _FAMILIES[config.model_type](config, text, vision)
    return config


def _mllama(config: Any, text: Any, vision: Any) -> None:
    text.cross_attention_layers, text.head_dim = [1], 8
    vision.num_global_layers, vision.intermediate_layers_indices = 1, [0]
    vision.attention_heads, vision.vision_output_dim = 2, 32


def _kimi(config: Any, text: Any, vision: Any) -> None:
    text.kv_lora_rank, text.moe_intermediate_size, text.n_routed_experts = 16, 8, 8
    text.qk_rope_head_dim, text.qk_nope_head_dim, text.v_head_dim = 8, 8, 8
    text.head_dim, text.qk_head_dim = 8, 16
    config.projection_hidden_size = 16


def _plain(config: Any, text: Any, vision: Any) -> None:
    text.head_dim = 8
    text.layer_types = ["full_attention"] * 2 if getattr(text, "layer_types", None) else None


def _gemma(config: Any, text: Any, vision: Any) -> None:
    text.head_dim, text.layer_types = 8, ["sliding_attention", "full_attention"]


def _gemma4(config: Any, text: Any, vision: Any) -> None:
    sliding = "sliding_attention"
    config.text_config = type(text)(
        hidden_size=16,
        hidden_size_per_layer_input=8,
        intermediate_size=16,
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        layer_types=[sliding, "full_attention"] * 2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        global_head_dim=16,
        sliding_window=text.sliding_window,
        final_logit_softcapping=text.final_logit_softcapping,
    )
    vision.head_dim, vision.num_key_value_heads = 8, 2
    config.audio_config = None
    config.vision_soft_tokens_per_image = 70  # not 280: each has logits over all of the vocabulary


def _recurrent(config: Any, text: Any, vision: Any) -> None:
    text.head_dim, text.layer_types = 8, ["linear_attention", "full_attention"]
    text.linear_num_key_heads = text.linear_num_value_heads = 2
    text.linear_key_head_dim = text.linear_value_head_dim = 8
    text.rope_parameters = {**text.rope_parameters, "partial_rotary_factor": 1.0}


def _minicpm(config: Any, text: Any, vision: Any) -> None:
    _recurrent(config, text, vision)
    config.insert_layer_id = vision.insert_layer_id = 0


def _qwen3_5(config: Any, text: Any, vision: Any) -> None:
    _recurrent(config, text, vision)
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [1, 1, 2]}
    vision.depth, vision.num_heads, vision.out_hidden_size = 2, 2, 16


def _qwen(config: Any, text: Any, vision: Any) -> None:
    text.head_dim, text.layer_types = 8, ["full_attention"] * 2
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [1, 1, 2]}
    text.rope_parameters.pop("partial_rotary_factor", None)
    vision.depth, vision.num_heads, vision.out_hidden_size = 2, 2, 16
    if hasattr(vision, "fullatt_block_indexes"):
        vision.fullatt_block_indexes = [1]
    if hasattr(vision, "deepstack_visual_indexes"):
        vision.deepstack_visual_indexes = [0, 1]


def _glm4v_moe(config: Any, text: Any, vision: Any) -> None:
    _qwen(config, text, vision)
    text.moe_intermediate_size, text.n_routed_experts = 8, 8
    text.head_dim = 16  # half of which is rotated


def _molmo2(config: Any, text: Any, vision: Any) -> None:
    text.head_dim, text.num_hidden_layers = 8, 2
    config.adapter_config.vision_feature_layer = [0, 0]
    for part in (vision, config.adapter_config):
        part.hidden_size = part.intermediate_size = 16
        part.num_attention_heads, part.num_key_value_heads, part.head_dim = 2, 2, 8
    config.adapter_config.text_hidden_size = 16


_FAMILIES = {
    "mllama": _mllama,
    "kimi_vl": _kimi,
    "gemma3": _gemma,
    "gemma4": _gemma4,
    "glm4v": _qwen,
    "glm4v_moe": _glm4v_moe,
    "internvl": _plain,
    "llava_onevision": _plain,
    "minicpmv4_6": _minicpm,
    "molmo2": _molmo2,
    "qwen2_5_vl": _qwen,
    "qwen3_5": _qwen3_5,
    "qwen3_vl": _qwen,
    "smolvlm": _plain,
}
