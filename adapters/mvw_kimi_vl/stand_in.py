"""A processor for a Kimi-VL of random weights, made from its configuration without any download.

Source of the special tokens: `tokenizer_config.json` of moonshotai/Kimi-VL-A3B-Thinking-2506; the
image token is the configuration's.
"""

from __future__ import annotations

from typing import Any

from mvw_hf.stand_in import stand_in_tokenizer

from mvw_kimi_vl.images import ImagePreparation
from mvw_kimi_vl.processor import PLACEHOLDER, KimiProcessor
from mvw_kimi_vl.tokenizer import TEMPLATE

_SPECIAL = {
    "[BOS]": 163584,
    "[EOS]": 163585,
    "<|im_end|>": 163586,
    "<|im_user|>": 163587,
    "<|im_assistant|>": 163588,
    "<|im_system|>": 163594,
    "<|im_middle|>": 163601,
    "<|media_start|>": 163602,
    "<|media_content|>": 163603,
    "<|media_end|>": 163604,
    "[UNK]": 163838,
    "[PAD]": 163839,
}


def stand_in_processor(config: Any) -> KimiProcessor | None:
    """Make the processor; None for a vocabulary without Kimi-VL's special tokens."""
    size = config.get_text_config().vocab_size
    if size <= max(_SPECIAL.values()):
        return None
    tokenizer = stand_in_tokenizer(
        size,
        {**_SPECIAL, PLACEHOLDER: config.image_token_id},
        template=TEMPLATE,
        bos_token="[BOS]",
        eos_token="[EOS]",
        pad_token="[PAD]",
    )
    vision = config.vision_config
    return KimiProcessor(
        tokenizer,
        ImagePreparation(
            patch_size=vision.patch_size,
            merge_kernel_size=tuple(vision.merge_kernel_size),
            in_token_limit=config.in_token_limit,
        ),
    )
