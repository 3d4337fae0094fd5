"""Tiny random models of the families that the engine has to serve, and prompts for them.

Each family is built from transformers' own classes with a few thousand weights. A prompt holds
one image of random pixels; its size differs from prompt to prompt where the family allows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import transformers as hf
from releases import NO_CACHE
from torch import Tensor

from mvw_cli.adapter import VisionLayout

IMAGE, VIDEO, VISION_START, VISION_END = 99, 98, 97, 96
VOCABULARY = 100
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
CLIP: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
PATCHES: dict[str, Any] = {"depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 4}
MERGED: dict[str, Any] = {**PATCHES, "intermediate_size": 48, "out_hidden_size": 32}


def _in_sequence(inputs: dict[str, Tensor]) -> VisionLayout:
    return VisionLayout(inputs["input_ids"][0] == IMAGE)


@dataclass(frozen=True)
class Family:
    name: str
    build: Callable[[], Any]
    prompt: Callable[[int], dict[str, Tensor]]
    """Makes the inputs of one prompt from a seed."""
    layout: Callable[[dict[str, Tensor]], VisionLayout] = _in_sequence
    """Says where a prompt's vision lies."""


def _ids(before: int, image: list[int], after: int, seed: int) -> Tensor:
    """Random text around an image: # (1, before + len(image) + after)."""
    random = torch.Generator().manual_seed(seed)
    text = torch.randint(3, 90, (before + after,), generator=random).tolist()
    return torch.tensor([[1, *text[:before], *image, *text[before:]]])


def _pixels(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _inputs(ids: Tensor, **rest: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **rest}


def _made(name: str, **config: Any) -> Any:
    """Build a model of transformers' own classes."""
    model, settings = (getattr(hf, name + kind) for kind in ("ForConditionalGeneration", "Config"))
    return model(settings(**config))


def _llava(text: Any = None) -> Any:
    return _made(
        "Llava",
        vision_config=hf.CLIPVisionConfig(**CLIP),
        text_config=text or hf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )


def _llava_prompt(seed: int) -> dict[str, Tensor]:
    ids = _ids(2 + seed, [IMAGE] * 16, 4, seed)
    return _inputs(ids, pixel_values=_pixels(1, 3, 32, 32, seed=seed))


def _llava_onevision() -> Any:
    return _made(
        "LlavaOnevision",
        vision_config=hf.SiglipVisionConfig(**CLIP, vision_use_head=False),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
    )


def _llava_onevision_prompt(seed: int) -> dict[str, Tensor]:
    # Two crops and a base view of a 32 x 64 image: 4x4 base, 4 rows x (8 + a newline) unpadded.
    ids = _ids(3, [IMAGE] * (16 + 4 * 9), 4 + seed, seed)
    return _inputs(
        ids,
        pixel_values=_pixels(1, 3, 3, 32, 32, seed=seed),
        image_sizes=torch.tensor([[32, 64]]),
    )


def _grid_prompt(seed: int) -> dict[str, Tensor]:
    """One image of 4 x (4 + 2 seed) patches, merged 2 x 2, as the Qwen family wants it."""
    height, width = 4, 4 + 2 * (seed % 3)
    ids = _ids(2, [VISION_START, *[IMAGE] * (height * width // 4), VISION_END], 5, seed)
    return _inputs(
        ids,
        pixel_values=_pixels(height * width, 3 * 2 * 4 * 4, seed=seed),
        image_grid_thw=torch.tensor([[1, height, width]]),
        mm_token_type_ids=(ids == IMAGE).int(),
    )


def _qwen(name: str, vision: dict[str, Any], rope: dict[str, Any] = MROPE, **text: Any) -> Any:
    return _made(
        name,
        text_config={**TEXT, "rope_parameters": rope, **text},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )


def _qwen2_vl() -> Any:
    return _qwen("Qwen2VL", {**PATCHES, "embed_dim": 32, "mlp_ratio": 2})


def _qwen2_5_vl() -> Any:
    return _qwen("Qwen2_5_VL", {**MERGED, "window_size": 16, "fullatt_block_indexes": [1]})


def _qwen3_vl() -> Any:
    stack = {"depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    return _qwen("Qwen3VL", {**MERGED, **stack}, {**MROPE, "mrope_interleaved": True}, head_dim=8)


def _glm4v(name: str = "Glm4v", **text: Any) -> Any:
    return _made(
        name,
        text_config={**TEXT, "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}, **text},
        vision_config={**MERGED, "image_size": 32},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=VISION_START,
        image_end_token_id=VISION_END,
        video_start_token_id=95,
        video_end_token_id=94,
    )


def _internvl() -> Any:
    return _made(
        "InternVL",
        vision_config={
            **CLIP,
            "image_size": [32, 32],
            "patch_size": [4, 4],
            "use_qk_norm": False,
        },
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        downsample_ratio=0.5,
        image_seq_length=16,
    )


def _gemma3() -> Any:
    return _made(
        "Gemma3",
        text_config={
            **TEXT,
            "head_dim": 8,
            # Shorter than prompt and output, so that every mask by position is put to use.
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 8,
        },
        vision_config={**CLIP, "vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_id=IMAGE,
        boi_token_id=VISION_START,
        eoi_token_id=VISION_END,
    )


def _gemma3_prompt(seed: int) -> dict[str, Tensor]:
    ids = _ids(3, [VISION_START, *[IMAGE] * 4, VISION_END], 4 + seed, seed)
    return _inputs(
        ids,
        pixel_values=_pixels(1, 3, 32, 32, seed=seed),
        token_type_ids=(ids == IMAGE).int(),
    )


def _paligemma() -> Any:
    return _made(
        "PaliGemma",
        vision_config=hf.SiglipVisionConfig(**CLIP, vision_use_head=False, projection_dim=32),
        text_config=hf.GemmaConfig(**TEXT, head_dim=8),
        image_token_id=IMAGE,
        projection_dim=32,
    )


def _paligemma_prompt(seed: int) -> dict[str, Tensor]:
    """The image comes first; all of the prompt is a prefix that attends both ways."""
    ids = _ids(0, [IMAGE] * 16, 5 + seed, seed)
    return _inputs(
        ids, pixel_values=_pixels(1, 3, 32, 32, seed=seed), token_type_ids=torch.zeros_like(ids)
    )


def _mistral3() -> Any:
    return _made(
        "Mistral3",
        vision_config=hf.PixtralVisionConfig(**{**CLIP, "patch_size": 4, "head_dim": 8}),
        text_config=hf.MistralConfig(**TEXT, sliding_window=None, head_dim=8),
        image_token_id=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )


def _mistral3_prompt(seed: int) -> dict[str, Tensor]:
    rows, columns = 2, 2 + seed % 3
    image = ([IMAGE] * columns + [VISION_START]) * (rows - 1) + [IMAGE] * columns + [VISION_END]
    return _inputs(
        _ids(2, image, 4, seed),
        pixel_values=_pixels(1, 3, rows * 8, columns * 8, seed=seed),
        image_sizes=torch.tensor([[rows * 8, columns * 8]]),
    )


def _tiled(name: str) -> Any:
    return _made(
        name,
        vision_config=dict(CLIP),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )


def _tiles_prompt(seed: int) -> dict[str, Tensor]:
    """Two tiles of 4 vision tokens each, with row markers between, as Idefics writes them."""
    image = [VISION_START, *[IMAGE] * 4, VISION_START, *[IMAGE] * 4, VISION_END]
    return _inputs(
        _ids(2, image, 4 + seed, seed),
        pixel_values=_pixels(1, 2, 3, 32, 32, seed=seed),
        pixel_attention_mask=torch.ones(1, 2, 32, 32, dtype=torch.long),
    )


def _kimi_text_stack() -> Any:
    """LLaVA over DeepSeek-V3's language model: the MLA and MoE blocks that Kimi-VL uses."""
    text = hf.DeepseekV3Config(
        **{**TEXT, "num_key_value_heads": 4},
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=None,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    return _llava(text)


MLLAMA_STATES = 5  # vision states of a tile: 2 x 2 patches and the class token


def _mllama() -> Any:
    model = _made(
        "Mllama",
        text_config={
            **TEXT,
            "num_hidden_layers": 4,
            "cross_attention_layers": [1, 3],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "vision_output_dim": 32,
            "intermediate_layers_indices": [0],
            "max_num_tiles": 4,
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2]],
        },
        image_token_index=IMAGE,
    )
    # Both gates are made as zeros, and a closed gate would hide whatever lies behind it.
    for number in (1, 3):
        layer = model.get_decoder().layers[number]
        layer.cross_attn_attn_gate.data.fill_(0.6)
        layer.cross_attn_mlp_gate.data.fill_(0.3)
    return model


def _mllama_prompt(seed: int) -> dict[str, Tensor]:
    """One or two images of different shapes, hence of different numbers of tiles."""
    tiles_of = {1: 1, 2: 2, 3: 3, 4: 4, 5: 2, 6: 4}  # by the number of the aspect ratio
    ratios = [(2, 6), (1,), (4,), (3, 5), (1, 4)][seed % 5]
    pairs = [(ratio, tiles_of[ratio]) for ratio in ratios]
    ids = _ids(3 + seed, [IMAGE] * len(pairs), 6, seed)
    tiles = torch.zeros(1, len(pairs), 4, dtype=torch.long)
    cross = torch.zeros(1, ids.shape[1], len(pairs), 4, dtype=torch.long)
    for image, (_, count) in enumerate(pairs):
        tiles[0, image, :count] = 1
        cross[0, 4 + seed + image :, image, :count] = 1
    return _inputs(
        ids,
        pixel_values=_pixels(1, len(pairs), 4, 3, 16, 16, seed=seed),
        aspect_ratio_ids=torch.tensor([[ratio for ratio, _ in pairs]]),
        aspect_ratio_mask=tiles,
        cross_attention_mask=cross,
    )


def _by_cross_attention(inputs: dict[str, Tensor]) -> VisionLayout:
    seen = inputs["cross_attention_mask"][0, -1].bool()  # (images, tiles)
    nothing = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool)
    return VisionLayout(nothing, seen.flatten().repeat_interleave(MLLAMA_STATES))


RECURRENT: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "rope_parameters": {**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED: dict[str, Any] = {  # the same by other names, above a dense layer; more of each head than
    "n_routed_experts": 4,  # the layers are wide, as in GLM-4.6V
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "head_dim": 16,
    "rope_parameters": {**MROPE, "partial_rotary_factor": 0.5},
}


def _qwen3_5(name: str = "Qwen3_5", **text: Any) -> Any:
    return _qwen(name, {**MERGED, "num_position_embeddings": 64}, **{**RECURRENT, **text})


def _minicpm() -> Any:
    return _made(
        "MiniCPMV4_6",
        text_config=hf.Qwen3_5TextConfig(**TEXT, **RECURRENT),
        vision_config={**CLIP, "patch_size": 4},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        insert_layer_id=0,
    )


def _minicpm_prompt(seed: int) -> dict[str, Tensor]:
    """One image of 8 x (8 + 4 seed) patches, in one row; 4 x 4 of them make a token."""
    height, width = 8, 8 + 4 * (seed % 3)
    ids = _ids(2, [VISION_START, *[IMAGE] * (height * width // 16), VISION_END], 5, seed)
    return _inputs(
        ids,
        pixel_values=_pixels(1, 3, 4, height * width * 4, seed=seed),
        target_sizes=torch.tensor([[height, width]]),
    )


def _lfm2_vl() -> Any:
    return _made(
        "Lfm2Vl",
        text_config=hf.Lfm2Config(
            **TEXT,
            layer_types=["conv", "full_attention", "conv"],
            block_auto_adjust_ff_dim=False,
        ),
        vision_config=hf.Siglip2VisionConfig(
            **{**CLIP, "patch_size": 4}, num_patches=16, vision_use_head=False
        ),
        image_token_id=IMAGE,
        projector_hidden_size=32,
    )


def _lfm2_vl_prompt(seed: int) -> dict[str, Tensor]:
    """One image of 4 x (4 + 2 seed) patches, merged 2 x 2."""
    height, width = 4, 4 + 2 * (seed % 3)
    return _inputs(
        _ids(2, [VISION_START, *[IMAGE] * (height * width // 4), VISION_END], 5, seed),
        pixel_values=_pixels(1, height * width, 3 * 4 * 4, seed=seed),
        pixel_attention_mask=torch.ones(1, height * width, dtype=torch.long),
        spatial_shapes=torch.tensor([[height, width]]),
    )


def _lfm3_vl() -> Any:
    return _made(
        "Lfm3Vl",
        text_config=hf.Lfm3Config(
            **TEXT,
            layer_types=["conv", "full_attention", "sliding_attention"],
            head_dim=8,
            sliding_window=12,
        ),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "layer_types": ["conv", "full_attention"],
            "patch_size": 4,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        projector_hidden_size=32,
    )


def _lfm3_vl_prompt(seed: int) -> dict[str, Tensor]:
    inputs = _grid_prompt(seed)
    del inputs["mm_token_type_ids"]
    return inputs


def _llama4() -> Any:
    return _made(
        "Llama4",
        text_config={
            **TEXT,
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 2,
            "num_local_experts": 2,
            "head_dim": 8,
            "no_rope_layers": [1, 0, 1],
            # Both shorter than prompt and output, so that each changes on the way.
            "attention_chunk_size": 20,
            "floor_scale": 4,
            "attn_scale": 0.5,
        },
        vision_config={
            **CLIP,
            "intermediate_size": 128,
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
        },
        image_token_index=IMAGE,
        boi_token_index=VISION_START,
        eoi_token_index=VISION_END,
    )


def _llama4_prompt(seed: int) -> dict[str, Tensor]:
    ids = _ids(3, [VISION_START, *[IMAGE] * 4, VISION_END], 4 + seed, seed)
    return _inputs(ids, pixel_values=_pixels(1, 3, 32, 32, seed=seed))


def _molmo2() -> Any:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    sizes = {"hidden_size": 32, "intermediate_size": 48, **heads}
    return _made(
        "Molmo2",
        text_config={**TEXT, "head_dim": 8, "vocab_size": 90, "additional_vocab_size": 10},
        vision_config={**sizes, "num_hidden_layers": 2, "image_size": [16, 16], "patch_size": 4},
        adapter_config={**sizes, "text_hidden_size": 32, "vision_feature_layer": [1, 0]},
        image_patch_id=IMAGE,
        image_start_token_id=VISION_START,
        low_res_image_start_token_id=VISION_START,
        image_end_token_id=VISION_END,
    )


def _molmo2_prompt(seed: int) -> dict[str, Tensor]:
    """A view of 4 x 4 patches and one to three crops as large, pooled 2 x 2; all see each other."""
    views = 2 + seed % 3
    squares = torch.arange(views * 16).view(views, 2, 2, 2, 2).transpose(2, 3).reshape(-1, 4)
    image = [VISION_START, *[IMAGE] * 4, VISION_END, VISION_START, *[IMAGE] * 4 * (views - 1)]
    ids = _ids(2, [*image, VISION_END], 5, seed)
    return _inputs(
        ids,
        pixel_values=_pixels(views, 16, 3 * 4 * 4, seed=seed),
        image_token_pooling=squares,
        image_grids=torch.tensor([[2, 2, 2, 2 * (views - 1)]]),
        image_num_crops=torch.tensor([views]),
        mm_token_type_ids=(ids >= VISION_END).int(),
    )


SHARING: dict[str, Any] = {
    **TEXT,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "head_dim": 8,
    "sliding_window": 12,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
}


class _Patches(torch.nn.Module):
    """In place of Gemma 3n's vision tower, which is one of timm's: one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 32, 8, stride=8)

    def forward(self, pixel_values: Tensor, **rest: Any) -> Any:
        return hf.modeling_outputs.BaseModelOutputWithPooling(self.conv(pixel_values))


def _gemma3n() -> Any:
    made = hf.AutoModel.from_config

    def from_config(config: Any, **rest: Any) -> Any:
        return _Patches() if config.model_type == "gemma3n_vision" else made(config, **rest)

    with patch.object(hf.AutoModel, "from_config", from_config):
        return _made(
            "Gemma3n",
            text_config={**SHARING, "altup_num_inputs": 2, "laurel_rank": 4},
            vision_config={"hidden_size": 32, "vocab_size": 4, "vocab_offset": VOCABULARY},
            audio_config={
                "hidden_size": 16,
                "vocab_size": 4,
                "vocab_offset": VOCABULARY + 4,
                "conf_num_attention_heads": 2,
                "conf_num_hidden_layers": 1,
                "sscp_conv_channel_size": (4, 4),
            },
            vision_soft_tokens_per_image=16,
            image_token_id=IMAGE,
            boi_token_id=VISION_START,
            eoi_token_id=VISION_END,
            audio_token_id=95,
        )


def _gemma4() -> Any:
    return _made(
        "Gemma4",
        text_config={**SHARING, "global_head_dim": 16},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "position_embedding_size": 16,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        boi_token_id=VISION_START,
        eoi_token_id=VISION_END,
        audio_token_id=95,
    )


def _gemma4_prompt(seed: int) -> dict[str, Tensor]:
    """One image of 4 x (4 + 2 seed) patches, pooled 2 x 2."""
    height, width = 4, 4 + 2 * (seed % 3)
    ids = _ids(3, [VISION_START, *[IMAGE] * (height * width // 4), VISION_END], 4, seed)
    places = torch.stack(
        torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), dim=-1
    )
    return _inputs(
        ids,
        pixel_values=_pixels(1, height * width, 3 * 4 * 4, seed=seed).sigmoid(),
        image_position_ids=places.reshape(1, -1, 2),
        mm_token_type_ids=(ids == IMAGE).int(),
    )


FAMILIES = [
    Family("llava", _llava, _llava_prompt),
    Family("llava_onevision", _llava_onevision, _llava_onevision_prompt),
    Family("qwen2_vl", _qwen2_vl, _grid_prompt),
    Family("qwen2_5_vl", _qwen2_5_vl, _grid_prompt),
    Family("qwen3_vl", _qwen3_vl, _grid_prompt),
    Family("glm4v", _glm4v, _grid_prompt),
    Family("glm4v_moe", lambda: _glm4v("Glm4vMoe", **ROUTED), _grid_prompt),
    Family("internvl", _internvl, _llava_prompt),
    Family("gemma3", _gemma3, _gemma3_prompt),
    Family("paligemma", _paligemma, _paligemma_prompt),
    Family("mistral3", _mistral3, _mistral3_prompt),
    Family("idefics3", lambda: _tiled("Idefics3"), _tiles_prompt),
    Family("smolvlm", lambda: _tiled("SmolVLM"), _tiles_prompt),
    Family("kimi_text_stack", _kimi_text_stack, _llava_prompt),
    Family("mllama", _mllama, _mllama_prompt, _by_cross_attention),
    Family("qwen3_5", _qwen3_5, _grid_prompt),
    Family("qwen3_5_moe", lambda: _qwen3_5("Qwen3_5Moe", **EXPERTS), _grid_prompt),
    Family("minicpmv4_6", _minicpm, _minicpm_prompt),
    Family("lfm2_vl", _lfm2_vl, _lfm2_vl_prompt),
    Family("lfm3_vl", _lfm3_vl, _lfm3_vl_prompt),
    Family("llama4", _llama4, _llama4_prompt),
    Family("gemma3n", _gemma3n, _llava_prompt),
    Family("gemma4", _gemma4, _gemma4_prompt),
    Family("molmo2", _molmo2, _molmo2_prompt),
]

_NEWER = {"lfm3_vl": "Lfm3Config", "molmo2": "Molmo2Config"}
_MISSING = [name for name, kind in _NEWER.items() if not hasattr(hf, kind)]
FAMILIES = [family for family in FAMILIES if family.name not in {*_MISSING, *NO_CACHE}]
BY_NAME = {family.name: family for family in FAMILIES}
STUCK = ("qwen3_5", "qwen3_5_moe", "minicpmv4_6", "lfm2_vl", "lfm3_vl", "gemma3n", "gemma4")
"""Those that have layers without entries of their own: a state, or what another layer holds."""


def there(*names: str) -> list[str]:
    """Those of some families that this transformers has."""
    return [name for name in names if name in BY_NAME]


def build(family: Family) -> Any:
    """Build the family's model: float32, eval mode, with weights large enough to matter."""
    torch.manual_seed(0)
    model = family.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # The usual 0.02 makes every distribution flat, and any mistake too small to see.
            if parameter.ndim > 1:
                if not parameter.any():  # Gemma 3's projector: every image would look the same
                    parameter.normal_(std=0.02)
                parameter.mul_(4)
        # Placeholder tokens must not be generated: neither `generate` nor the oracle reads them.
        model.get_output_embeddings().weight[VISION_END - 2 :] = 0
    return model
