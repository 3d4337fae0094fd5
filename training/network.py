"""Build the parts of the saved model: tokenizer, processor and an untrained network.

The result is a plain transformers checkpoint.
"""

from __future__ import annotations

import re
from functools import cache

from mvw_shapes import easy_vqa
from mvw_shapes.questions import TEMPLATES, slots
from reasoning import TAGS, vocabulary_text
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<user>", "<assistant>")
IMAGE_SIDE = 84
PATCH = 7
VISION_TOKENS = (IMAGE_SIDE // PATCH) ** 2

# Images go first, whatever their place in the message: the model was trained on that order only.
CHAT_TEMPLATE = (
    "{{ '<s>' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<assistant> ' }}"
    "{% else %}{{ '<user> ' }}{% endif %}"
    "{% if message['content'] is string %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + '</s>' }}"
    "{% else %}{{ message['content'] | lower | trim }}{% endif %}"
    "{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<image> ' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{% if message['role'] == 'assistant' %}{{ part['text'] + '</s>' }}"
    "{% else %}{{ part['text'] | lower | trim }}{% endif %}"
    "{% endif %}{% endfor %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
)


@cache
def vocabulary() -> tuple[str, ...]:
    """List the tokens in the order of their ids."""
    texts = [vocabulary_text(), *(re.sub(r"{.+?}", " ", template.text) for template in TEMPLATES)]
    texts += [text for wordings in slots().values() for text in wordings]
    words = {word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)}
    words |= {"?", ".", ",", ":", "!", "'"}
    # easy-VQA was learnt later: its words came to the end, where they moved no other.
    return (*SPECIAL, *TAGS, *sorted(words), *sorted(easy_vqa.words() - words))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer of both worlds."""
    ids = {word: number for number, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("\u2019", "'"), normalizers.Replace("-", " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    # Both decoders work token by token, so a longer output never changes the text of a shorter one.
    tokenizer.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=True), decoders.Replace(" :", ":")]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    # The stage tags are text to whoever reads the answer, so they outlive skip_special_tokens.
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_processor() -> LlavaProcessor:
    """Build the processor: resize to IMAGE_SIDE x IMAGE_SIDE, and one tag per vision token."""
    images = CLIPImageProcessorPil(
        size={"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    *, vision_layers: int = 3, vision_width: int = 96, text_layers: int = 4, text_width: int = 160
) -> LlavaForConditionalGeneration:
    """Build the untrained network; the caller seeds torch."""
    vision = CLIPVisionConfig(
        hidden_size=vision_width,
        intermediate_size=4 * vision_width,
        num_hidden_layers=vision_layers,
        num_attention_heads=vision_width // 32,
        image_size=IMAGE_SIDE,
        patch_size=PATCH,
        projection_dim=vision_width,
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=text_width,
        intermediate_size=text_width * 14 // 5,
        num_hidden_layers=text_layers,
        num_attention_heads=text_width // 40,
        num_key_value_heads=text_width // 40,
        max_position_embeddings=1024,
        # About 1 / sqrt(width). The usual 0.02 suits widths in the thousands; here it keeps the
        # network from telling equal from different for thousands of steps.
        initializer_range=0.06,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=VISION_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=256,
        pad_token_id=text.pad_token_id,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
    )
    return model
