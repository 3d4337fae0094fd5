"""A processor for a Mllama of random weights, made from its configuration without any download.

Sources: `preprocessor_config.json`, `tokenizer_config.json` and `chat_template.json` of
meta-llama/Llama-3.2-11B-Vision-Instruct, which Xkev/Llama-3.2V-11B-cot was tuned from.
"""

from __future__ import annotations

from mvw_hf.fallback import fallback_tokenizer
from transformers import MllamaConfig
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.processing_mllama import MllamaProcessor

_IMAGE = "<|image|>"
_SPECIAL = {
    "<|begin_of_text|>": 128000,
    "<|end_of_text|>": 128001,
    "<|finetune_right_pad_id|>": 128004,
    "<|start_header_id|>": 128006,
    "<|end_header_id|>": 128007,
    "<|eom_id|>": 128008,
    "<|eot_id|>": 128009,
    "<|python_tag|>": 128010,
}
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image|>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def fallback_processor(config: MllamaConfig) -> MllamaProcessor | None:
    """Make the processor; None for a vocabulary without Llama 3's special tokens."""
    text, vision = config.text_config, config.vision_config
    if text.vocab_size <= max(_SPECIAL.values()):
        return None
    side = vision.image_size
    return MllamaProcessor(
        image_processor=MllamaImageProcessorPil(
            size={"height": side, "width": side},
            max_image_tiles=vision.max_num_tiles,
            image_mean=[0.48145466, 0.4578275, 0.40821073],
            image_std=[0.26862954, 0.26130258, 0.27577711],
        ),
        tokenizer=fallback_tokenizer(
            text.vocab_size,
            {**_SPECIAL, _IMAGE: config.image_token_id},
            bos_token="<|begin_of_text|>",
            eos_token="<|eot_id|>",
            pad_token="<|finetune_right_pad_id|>",
        ),
        chat_template=_TEMPLATE,
    )
