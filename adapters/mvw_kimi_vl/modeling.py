"""Kimi-VL on transformers' own classes: its configuration and the names of its weights.

Kimi-VL (https://arxiv.org/abs/2504.07491) has the vision tower, the projector and the text model
that transformers has for Kimi-K2.5 (`models/kimi_k25`, `models/deepseek_v3`), for images only. What
differs is how the hub's `config.json` and safetensors name things.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import WeightRenaming
from transformers.models.kimi_k25 import Kimi_K25Config, Kimi_K25ForConditionalGeneration
from transformers.utils import cached_file

MODEL_TYPE = "kimi_vl"
DEFAULT_PATCHES = 4096
"""Most patches of an image before merging, by the checkpoints' own code."""
_NO_TOKEN = -1  # Kimi-VL reads no videos
_VISION_NAMES = {
    "init_pos_emb_height": "pos_emb_height",
    "init_pos_emb_width": "pos_emb_width",
}
_VISION_KEYS = (
    "patch_size",
    "num_attention_heads",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "merge_kernel_size",
)


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


def load_config(name: str, *, revision: str | None = None) -> KimiVLConfig:
    """Read the configuration of a folder or hub id.

    Raises:
        ValueError: it is that of another model.
    """
    told, _ = PreTrainedConfig.get_config_dict(name, revision=revision or "main")
    if told.get("model_type") != MODEL_TYPE:
        raise ValueError(f"its config.json is of model type {told.get('model_type')!r}")
    if "in_token_limit" not in told:
        told["in_token_limit"] = _patch_limit(name, revision)
    return config_from_hub(told)


def config_from_hub(told: dict[str, Any]) -> KimiVLConfig:
    """Turn the content of the hub's `config.json` into transformers' names.

    `in_token_limit`, the most patches of an image, is of `preprocessor_config.json`. It travels
    with the configuration, so that vision tokens can be counted from that alone.
    """
    if "media_placeholder_token_id" not in told:
        return KimiVLConfig(**told)  # one that transformers has saved
    vision = told["vision_config"]
    renamed = {ours: vision[theirs] for theirs, ours in _VISION_NAMES.items() if theirs in vision}
    renamed |= {key: vision[key] for key in _VISION_KEYS if key in vision}
    text = {**told["text_config"], "model_type": "deepseek_v3"}
    # The checkpoint's own modelling code lies beside it and is not run.
    text.pop("auto_map", None)
    tied = told.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    return KimiVLConfig(
        text_config=text,
        vision_config=renamed,
        projection_hidden_size=renamed.get("hidden_size", 1152),
        image_token_id=told["media_placeholder_token_id"],
        video_token_id=_NO_TOKEN,
        tie_word_embeddings=bool(tied),
        dtype=told.get("torch_dtype", told.get("dtype")),
        in_token_limit=told.get("in_token_limit", DEFAULT_PATCHES),
    )


def _patch_limit(name: str, revision: str | None) -> int:
    """Read how many patches of an image a checkpoint allows; asks the hub for one small file.

    The default where its `preprocessor_config.json` can't be had or does not tell.
    """
    found = cached_file(
        name,
        "preprocessor_config.json",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    told = {} if found is None else json.loads(Path(found).read_text(encoding="utf-8"))
    return int(told.get("in_token_limit", DEFAULT_PATCHES))


def _register_names() -> None:
    """Tell transformers how Kimi-VL's checkpoints name what Kimi-K2.5's name otherwise."""
    shared = [
        entry
        for entry in get_checkpoint_conversion_mapping("kimi_k25")
        if not any("mm_projector" in pattern for pattern in entry.source_patterns)
    ]
    projector = [
        WeightRenaming(
            source_patterns=rf"multi_modal_projector.{theirs}",
            target_patterns=rf"model.mm_projector.{ours}",
        )
        for theirs, ours in (
            ("pre_norm", "pre_norm"),
            ("linear_1", "in_proj"),
            ("linear_2", "out_proj"),
        )
    ]
    register_checkpoint_conversion_mapping(MODEL_TYPE, [*shared, *projector], overwrite=True)


_register_names()
