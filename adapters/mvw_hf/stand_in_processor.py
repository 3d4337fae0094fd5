"""A stand-in for the processor of any family whose image processor is known here.

It puts image tokens into text and prepares images. It knows no chat format: a prompt of random
weights is the images and the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mvw_hf.image_processors import image_processor
from mvw_hf.image_tokens import image_tokens
from mvw_hf.stand_in import StandInTokenizer, stand_in_tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

_IMAGE = "\0image\0"  # no question has it in it: neither arguments nor files of text hold zeros
_OF_IMAGES = ("pixel_values", "image_grid_thw", "image_sizes")
"""What models of these families take; processors also return what only other processors read."""
_TOKEN_TYPES = {
    "gemma3": "token_type_ids",
    "glm4v": "mm_token_type_ids",
    "qwen2_vl": "mm_token_type_ids",
    "qwen2_5_vl": "mm_token_type_ids",
    "qwen3_vl": "mm_token_type_ids",
    "qwen3_vl_moe": "mm_token_type_ids",
}
"""By which name a model is told which tokens are of an image."""


@dataclass(frozen=True, slots=True)
class StandInProcessor:
    """Tokenizer and image processor of one configuration."""

    tokenizer: StandInTokenizer
    images: Any
    config: Any

    def __call__(
        self, *, text: str, images: Sequence[Image] | None, return_tensors: str
    ) -> dict[str, Any]:
        """Encode a text that has one image token for each image.

        Raises:
            BadImage: an image is of a size that the model refuses.
        """
        images = images or []
        first, *pieces = text.split(_IMAGE)
        written = first
        for image, piece in zip(images, pieces, strict=True):
            written += _IMAGE * image_tokens(self.config, *image.size) + piece
        encoded = dict(self.tokenizer(written, return_tensors=return_tensors))
        name = _TOKEN_TYPES.get(self.config.model_type)
        if name is not None:
            encoded[name] = (encoded["input_ids"] == self.config.image_token_id).long()
        if images:
            prepared = self.images(images=list(images), return_tensors=return_tensors)
            encoded |= {key: prepared[key] for key in _OF_IMAGES if key in prepared}
        return encoded


def stand_in_processor(config: Any) -> StandInProcessor | None:
    """Make the processor of a configuration; None where its family is not known here."""
    images, image_id = image_processor(config), getattr(config, "image_token_id", None)
    if images is None or image_id is None:
        return None
    text = config.get_text_config()
    special = {_IMAGE: int(image_id)}
    names = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        told = getattr(text, f"{name}_id", None)
        one = told[0] if isinstance(told, list) else told
        if one is not None and one not in special.values():
            names[name] = f"<{name}>"
            special[names[name]] = one
    return StandInProcessor(stand_in_tokenizer(text.vocab_size, special, **names), images, config)
