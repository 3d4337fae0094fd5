"""A LLaVA of random weights with a processor, at a size that a benchmark asks for."""

from __future__ import annotations

from typing import Any

import torch
from mvw_hf.tiny import tiny_llava
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

PATCH = 14
"""Side of a patch in pixels; a patch is a vision token."""


def build_llava(layers: int, width: int, *, side: int, kv_heads: int) -> tuple[Any, Any]:
    """Build model and processor, the same weights each time; images are `side` pixels a side."""
    _, tiny = tiny_llava()
    size = {"height": side, "width": side}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=tiny.tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tiny.chat_template,
    )
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                image_size=side,
                patch_size=PATCH,
            ),
            text_config=LlamaConfig(
                hidden_size=width,
                intermediate_size=3 * width,
                num_hidden_layers=layers,
                num_attention_heads=8,
                num_key_value_heads=kv_heads,
                vocab_size=32_000,
                max_position_embeddings=4096,
                initializer_range=0.05,
            ),
            image_token_id=image,
            vision_feature_select_strategy="default",
            vision_feature_layer=-1,
        )
    ).eval()
    model.generation_config.suppress_tokens = [image]
    model.generation_config.pad_token_id = 0
    return model, processor
