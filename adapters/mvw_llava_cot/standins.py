"""A processor and a model for Mllama that are made without any download.

Sources: `preprocessor_config.json`, `tokenizer_config.json` and `chat_template.json` of
meta-llama/Llama-3.2-11B-Vision-Instruct, which Xkev/Llama-3.2V-11B-cot was tuned from.
"""

from __future__ import annotations

import torch
from mvw_hf.fallback import fallback_tokenizer
from mvw_hf.loading import read_published
from mvw_hf.tiny import word_tokenizer
from tokenizers import processors
from transformers import MllamaConfig, MllamaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.processing_mllama import MllamaProcessor

from mvw_llava_cot.model import CHECKPOINT, LlavaCot

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
    """Make the processor of a configuration; None for a vocabulary without Llama 3's tokens."""
    size = config.text_config.vocab_size
    if size <= max(_SPECIAL.values()):
        return None
    tokenizer = fallback_tokenizer(
        size,
        {**_SPECIAL, _IMAGE: config.image_token_id},
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
    )
    # Of the published `preprocessor_config.json`.
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return _processor(config, tokenizer, _TEMPLATE, image_mean=mean, image_std=std)


def _processor(
    config: MllamaConfig, tokenizer: PreTrainedTokenizerFast, template: str, **images: list[float]
) -> MllamaProcessor:
    side = config.vision_config.image_size
    image_processor = MllamaImageProcessorPil(
        size={"height": side, "width": side},
        max_image_tiles=config.vision_config.max_num_tiles,
        **images,
    )
    return MllamaProcessor(
        image_processor=image_processor, tokenizer=tokenizer, chat_template=template
    )


# -- a few thousand random weights ---------------------------------------------------------------

# The image token comes last, past the vocabulary of the output layer, as in the published model.
_TOKENS = ["<pad>", "<|begin_of_text|>", "<|eot_id|>", "<unk>", "<|python_tag|>"]
_TOKENS += [*(f"w{number}" for number in range(57)), _IMAGE]
_TINY_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image|>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def tiny_mllama() -> tuple[MllamaForConditionalGeneration, MllamaProcessor]:
    """Build model and processor; the same weights each time."""
    config = _tiny_config()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = MllamaForConditionalGeneration(config).eval()
    for number in model.config.text_config.cross_attention_layers:
        # Both gates start closed, which would hide whatever lies behind them.
        layer = model.get_decoder().layers[number]
        layer.cross_attn_attn_gate.data.fill_(0.6)
        layer.cross_attn_mlp_gate.data.fill_(0.3)
    special = [_IMAGE, "<|python_tag|>"]
    tokenizer = word_tokenizer(_TOKENS, "<|begin_of_text|>", "<|eot_id|>", special)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 1)]
    )
    return model, _processor(config, tokenizer, _TINY_TEMPLATE)


def _tiny_config() -> MllamaConfig:
    told = read_published(LlavaCot.published, CHECKPOINT)
    assert told is not None
    told["image_token_index"] = _TOKENS.index(_IMAGE)
    told["dtype"] = "float32"
    told["text_config"] |= {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": len(_TOKENS) - 1,
        "cross_attention_layers": [1, 3],
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        # The usual 0.02 makes every distribution flat, and any mistake too small to see.
        "initializer_range": 0.3,
    }
    told["vision_config"] |= {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 16,  # px, of one tile
        "patch_size": 8,
        "vision_output_dim": 32,
        "intermediate_layers_indices": [0],
    }
    return MllamaConfig(**told)
