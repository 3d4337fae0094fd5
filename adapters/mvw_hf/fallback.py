"""A processor for random weights, where the checkpoint's own can't be had.

What measures time and memory needs the right number of tokens, and ids that the model has. Text is
cut every four characters, the usual rule for English, and no meaning survives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL.Image import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedTokenizerFast

from mvw_hf.image_processing import image_processor, image_tokens

CHARACTERS_PER_TOKEN = 4
"""Of English text, by the tokenizers of today's models: about four."""
_IMAGE = "\0image\0"  # no question has it in it: neither arguments nor files of text hold zeros
_OF_IMAGES = (
    *("pixel_values", "pixel_attention_mask", "image_grid_thw", "image_sizes", "target_sizes"),
    *("image_position_ids", "image_token_pooling", "image_grids", "image_num_crops"),
)
"""What models of these families take; processors also return what only other processors read."""
_TOKEN_TYPES = {"gemma3": "token_type_ids"} | dict.fromkeys(
    (
        *("gemma4", "glm4v", "glm4v_moe", "molmo2", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
        *("qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
    ),
    "mm_token_type_ids",
)
"""By which name a model is told which tokens are of an image."""


class FallbackTokenizer(PreTrainedTokenizerFast):  # type: ignore[misc]
    """A tokenizer by its ids, and by nothing else."""

    is_fallback = True


def fallback_tokenizer(
    size: int, special: Mapping[str, int], *, template: str | None = None, **names: str
) -> FallbackTokenizer:
    """Make a tokenizer in which every id below `size` is a token, and can be decoded.

    Ids of special tokens may lie beyond. `names` has those of them that are `bos_token` and so on.
    """
    words = {f" {n:03x}": n for n in range(size) if n not in special.values()}
    # A piece of text is the token of the same characters, or else the first of all.
    model = models.WordLevel(words | dict(special), unk_token=next(iter(words)))
    tokenizer = Tokenizer(model)
    every = Regex(rf"[\s\S]{{1,{CHARACTERS_PER_TOKEN}}}")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(every, "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return FallbackTokenizer(
        tokenizer_object=tokenizer,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


@dataclass(frozen=True, slots=True)
class FallbackProcessor:
    """Tokenizer and image processor of one configuration."""

    tokenizer: FallbackTokenizer
    image_processor: BaseImageProcessor
    config: PreTrainedConfig

    def __call__(
        self, *, text: str, images: Sequence[Image] | None, return_tensors: str
    ) -> dict[str, Tensor]:
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
            prepared = self.image_processor(images=list(images), return_tensors=return_tensors)
            encoded |= {key: prepared[key] for key in _OF_IMAGES if key in prepared}
        return encoded


def fallback_processor(config: PreTrainedConfig) -> FallbackProcessor | None:
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
    tokenizer = fallback_tokenizer(text.vocab_size, special, **names)
    return FallbackProcessor(tokenizer, images, config)
