"""A LLaVA of a few thousand random weights, with a processor, made without any download."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
_WORDS = [f"w{number}" for number in range(59)]
_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image> ' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def tiny_llava() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Build model and processor; the same weights each time."""
    tokens = [*_SPECIAL, *_WORDS]
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}
        ),
        tokenizer=word_tokenizer(tokens, "<s>", "</s>", ["<image>"]),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=len(tokens),
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            # The usual 0.02 makes every distribution flat, and any mistake too small to see.
            initializer_range=0.3,
        ),
        image_token_id=tokens.index("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config).eval()
    return model, processor


def word_tokenizer(
    tokens: list[str], begin: str, end: str, special: list[str]
) -> PreTrainedTokenizerFast:
    """Build a tokenizer of whole words; among them are `<pad>`, `<unk>` and the special ones."""
    vocabulary = {word: number for number, word in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token=begin,
        eos_token=end,
        unk_token="<unk>",
        additional_special_tokens=special,
    )
