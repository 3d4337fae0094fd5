"""Kimi-VL on transformers' own classes: configuration, names of weights, absorbed attention.

Kimi-VL (https://arxiv.org/abs/2504.07491) has the vision tower, the projector and the text model
that transformers has for Kimi-K2.5 (`models/kimi_k25`, `models/deepseek_v3`), for images only. What
differs is how the hub's `config.json` and safetensors name things, and a
quicker decode step of its latent attention.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mvw_hf.loading import fetched
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_interleave,
    eager_attention_forward,
)
from transformers.models.kimi_k25 import Kimi_K25Config, Kimi_K25ForConditionalGeneration

MODEL_TYPE = "kimi_vl"
DEFAULT_PATCHES = 4096
"""Most patches of an image before merging, by the checkpoints' own code."""
_NO_TOKEN = -1  # Kimi-VL reads no videos
_VISION_NAMES = {
    "init_pos_emb_height": "pos_emb_height",
    "init_pos_emb_width": "pos_emb_width",
    "init_pos_emb_time": "pos_emb_time",
    "vt_hidden_size": "hidden_size",
    "vt_intermediate_size": "intermediate_size",
    "vt_num_attention_heads": "num_attention_heads",
    "vt_num_hidden_layers": "num_hidden_layers",
}


class KimiVLConfig(Kimi_K25Config):  # type: ignore[misc]
    """The configuration in transformers' names; `config_from_hub` makes it of the hub's."""

    model_type = MODEL_TYPE


class KimiVLForConditionalGeneration(Kimi_K25ForConditionalGeneration):  # type: ignore[misc]
    """Kimi-VL. `from_pretrained` reads a checkpoint with the hub's names, and no code from it."""

    config_class = KimiVLConfig

    @classmethod
    def from_pretrained(cls, name: str, *args: Any, **options: Any) -> Any:
        if options.get("config") is None:
            options["config"] = load_config(name, revision=options.get("revision"))
        return super().from_pretrained(name, *args, **options)


class KimiK25ForConditionalGeneration(Kimi_K25ForConditionalGeneration):  # type: ignore[misc]
    """Kimi-K2.5. `from_pretrained` reads a checkpoint with the hub's names, and no code from it.

    Its experts are packed in four bits. compressed-tensors unpacks them while they are read:
    transformers keeps the experts of a layer in one tensor, which it can't leave packed.
    """

    @classmethod
    def from_pretrained(cls, name: str, *args: Any, **options: Any) -> Any:
        revision = options.get("revision")
        if options.get("config") is None:
            options["config"] = load_config(name, revision=revision)
        told, _ = PreTrainedConfig.get_config_dict(name, revision=revision or "main")
        packed = packing(told)
        if packed is not None:
            options["config"].quantization_config = {**packed, "dequantize": True}
        return super().from_pretrained(name, *args, **options)


def packing(told: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how a `config.json` says that weights are packed; None where they are not."""
    text = told.get("text_config") or {}
    found: dict[str, Any] | None = told.get("quantization_config", text.get("quantization_config"))
    return found


def load_config(name: str, *, revision: str | None = None) -> KimiVLConfig:
    """Read the configuration of a folder or hub id.

    The limit of patches is of `preprocessor_config.json`: that of the checkpoints' own code where
    the file can't be had or does not tell.
    """
    told, _ = PreTrainedConfig.get_config_dict(name, revision=revision or "main")
    if "in_token_limit" not in told:
        file = fetched(name, "preprocessor_config.json", revision)
        images = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
        limit = images.get("media_proc_cfg", {}).get("in_patch_limit", DEFAULT_PATCHES)
        told["in_token_limit"] = int(images.get("in_token_limit", limit))
    return config_from_hub(told)


def config_from_hub(told: dict[str, Any]) -> KimiVLConfig:
    """Turn the content of the hub's `config.json` into transformers' names.

    `in_token_limit`, the most patches of an image, is of `preprocessor_config.json`. It travels
    with the configuration, so that vision tokens can be counted from that alone.
    """
    made = Kimi_K25Config if told.get("model_type") == Kimi_K25Config.model_type else KimiVLConfig
    if "media_placeholder_token_id" not in told:
        return made(**told)  # one that transformers has saved
    vision = {_VISION_NAMES.get(key, key): told for key, told in told["vision_config"].items()}
    vision.pop("model_type", None)
    text = {**told["text_config"], "model_type": "deepseek_v3"}
    # The checkpoint's own modelling code lies beside it and is not run.
    for beside in ("auto_map", "quantization_config"):
        text.pop(beside, None)
    tied = told.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    return made(
        text_config=text,
        vision_config=vision,
        projection_hidden_size=vision.get("mm_hidden_size", vision.get("hidden_size", 1152)),
        projection_layer_norm_eps=vision.get("projector_ln_eps", 1e-5),
        image_token_id=told["media_placeholder_token_id"],
        video_token_id=_NO_TOKEN,
        tie_word_embeddings=bool(tied),
        dtype=told.get("torch_dtype", told.get("dtype")),
        in_token_limit=told.get("in_token_limit", DEFAULT_PATCHES),
    )


def _register_names() -> None:
    """Tell transformers how Kimi-VL's checkpoints name what Kimi-K2.5's name otherwise."""
    shared = [
        entry
        for entry in get_checkpoint_conversion_mapping("kimi_k25")
        if not any("mm_projector" in pattern for pattern in entry.source_patterns)
    ]
    names = {"pre_norm": "pre_norm", "linear_1": "in_proj", "linear_2": "out_proj"}
    projector = [
        WeightRenaming(
            source_patterns=rf"multi_modal_projector.{theirs}",
            target_patterns=rf"model.mm_projector.{ours}",
        )
        for theirs, ours in names.items()
    ]
    register_checkpoint_conversion_mapping(MODEL_TYPE, [*shared, *projector], overwrite=True)


_register_names()


@contextmanager
def absorbed(model: PreTrainedModel) -> Iterator[None]:
    """Let the steps of one token go without expanding the cache; restore the model at the end.

    transformers caches DeepSeek-V3's latents compressed, and at every step expands all of them to
    keys and values of all heads (`DeepseekV3Attention.expand_kv`). For one new token it is cheaper
    to fold the key half of `kv_b_proj` into the query and the value half behind the attention
    (DeepSeek-V2, arXiv 2405.04434, section 2.1.2): the cache is then attended to as one key head,
    as it is. The engine's slots come in through the attention function that is registered, as for
    any other model.
    """
    with ExitStack() as stack:
        for module in model.get_decoder().modules():
            if isinstance(module, DeepseekV3Attention) and _can_fold(module):
                plain = module.forward
                module.forward = partial(_forward, module, plain)
                stack.callback(vars(module).pop, "forward")
        yield


def _can_fold(module: DeepseekV3Attention) -> bool:
    """Whether the weights to be folded can be read outside of their own layer.

    Those that are quantised, or sent to the GPU when their layer runs, can't.
    """
    up = module.kv_b_proj
    readable = type(up) is torch.nn.Linear and up.weight.device.type != "meta"
    return readable and "forward" not in vars(module)


def _forward(
    module: DeepseekV3Attention,
    plain: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend from one token a row; a prefill goes the plain way.

    hidden_states: # (B, T, hidden)
    """
    name = "cache" if "cache" in options else "past_key_values"  # by the release of transformers
    cache = options.get(name)
    if cache is None or hidden_states.shape[1] != 1:
        output: tuple[Tensor, Tensor | None] = plain(
            hidden_states=hidden_states,
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            **options,
        )
        return output
    nope, query_rotary, latent, key_rotary = _projected(module, hidden_states, position_embeddings)
    del options[name]
    latent, key_rotary = cache.update(latent, key_rotary, module.layer_idx)
    up = module.kv_b_proj.weight.view(module.num_heads, -1, module.kv_lora_rank)
    key_half, value_half = up.split([module.qk_nope_head_dim, module.v_head_dim], dim=1)
    folded = torch.einsum("bhtd,hdr->bhtr", nope, key_half)
    attention = ALL_ATTENTION_FUNCTIONS.get_interface(
        module.config._attn_implementation, eager_attention_forward
    )
    with _one_key_head(module):
        attended, weights = attention(
            module,
            torch.cat((folded, query_rotary), dim=-1),
            torch.cat((latent, key_rotary), dim=-1),
            latent,
            attention_mask,
            dropout=0.0,
            scaling=module.scaling,
            **options,
        )  # (B, 1, H, rank)
    values = torch.einsum("bthr,hdr->bthd", attended, value_half)
    return module.o_proj(values.flatten(2)), weights


def _projected(
    module: DeepseekV3Attention, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make queries of all heads, and the latent and rotary key that all heads share.

    # (B, H, T, nope), (B, H, T, rope), (B, 1, T, rank), (B, 1, T, rope)
    """
    rows, length, _ = hidden_states.shape
    if module.q_lora_rank is None:
        queries = module.q_proj(hidden_states)
    else:
        queries = module.q_b_proj(module.q_a_layernorm(module.q_a_proj(hidden_states)))
    queries = queries.view(rows, length, module.num_heads, module.qk_head_dim).transpose(1, 2)
    nope, rotary = queries.split([module.qk_nope_head_dim, module.qk_rope_head_dim], dim=-1)
    down = module.kv_a_proj_with_mqa(hidden_states)[:, None]  # (B, 1, T, rank + rope)
    latent, key_rotary = down.split([module.kv_lora_rank, module.qk_rope_head_dim], dim=-1)
    turn = (
        apply_rotary_pos_emb_interleave if module.config.rope_interleave else apply_rotary_pos_emb
    )
    rotary, key_rotary = turn(rotary, key_rotary, *position_embeddings)
    return nope, rotary, module.kv_a_layernorm(latent), key_rotary


@contextmanager
def _one_key_head(module: DeepseekV3Attention) -> Iterator[None]:
    """Let all query heads read one key head while the attention function runs."""
    groups = module.num_key_value_groups
    module.num_key_value_groups = module.num_heads
    try:
        yield
    finally:
        module.num_key_value_groups = groups
