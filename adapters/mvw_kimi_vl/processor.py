"""Text and images of one prompt, put together as Kimi-VL reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from mvw_kimi_vl.images import ImagePreparation

PLACEHOLDER = "<|media_pad|>"


@dataclass(frozen=True, slots=True)
class KimiProcessor:
    """Tokenizer and image preparation of one checkpoint."""

    tokenizer: Any
    images: ImagePreparation

    def __call__(self, messages: list[dict[str, Any]], images: Sequence[Image]) -> dict[str, Any]:
        """Encode a conversation; each image's placeholder is repeated for its vision tokens."""
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        pieces = text.split(PLACEHOLDER)
        if len(pieces) != len(images) + 1:
            raise ValueError(
                f"the prompt has {len(pieces) - 1} image placeholders for {len(images)} images"
            )
        written = pieces[0]
        for image, piece in zip(images, pieces[1:], strict=True):
            written += PLACEHOLDER * self.images.vision_tokens(*image.size) + piece
        encoded = self.tokenizer(written, return_tensors="pt", add_special_tokens=False)
        inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        return {**inputs, **(self.images(images) if images else {})}
