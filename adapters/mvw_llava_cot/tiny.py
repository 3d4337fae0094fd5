"""A Mllama of a few thousand random weights, with a processor, made without any download."""

from __future__ import annotations

import torch
from mvw_hf.loading import read_published
from mvw_hf.tiny import word_tokenizer
from tokenizers import processors
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.processing_mllama import MllamaProcessor

from mvw_llava_cot.model import CHECKPOINT, LlavaCot

_SIDE = 16  # px, of one tile
_WORDS = [f"w{number}" for number in range(57)]
# The image token comes last, past the vocabulary of the output layer, as in the published model.
_TOKENS = ["<pad>", "<|begin_of_text|>", "<|eot_id|>", "<unk>", "<|python_tag|>", *_WORDS]
_IMAGE = len(_TOKENS)
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image|>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def tiny_mllama() -> tuple[MllamaForConditionalGeneration, MllamaProcessor]:
    """Build model and processor; the same weights each time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = MllamaForConditionalGeneration(_config()).eval()
    for number in model.config.text_config.cross_attention_layers:
        # Both gates start closed, which would hide whatever lies behind them.
        layer = model.get_decoder().layers[number]
        layer.cross_attn_attn_gate.data.fill_(0.6)
        layer.cross_attn_mlp_gate.data.fill_(0.3)
    return model, _processor()


def _processor() -> MllamaProcessor:
    tokens = [*_TOKENS, "<|image|>"]
    special = ["<|image|>", "<|python_tag|>"]
    tokenizer = word_tokenizer(tokens, "<|begin_of_text|>", "<|eot_id|>", special)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 1)]
    )
    return MllamaProcessor(
        image_processor=MllamaImageProcessorPil(
            size={"height": _SIDE, "width": _SIDE}, max_image_tiles=4
        ),
        tokenizer=tokenizer,
        chat_template=_TEMPLATE,
    )


def _config() -> MllamaConfig:
    told = read_published(LlavaCot.published, CHECKPOINT)
    assert told is not None
    told["image_token_index"] = _IMAGE
    told["dtype"] = "float32"
    told["text_config"] |= {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": len(_TOKENS),
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
        "image_size": _SIDE,
        "patch_size": 8,
        "vision_output_dim": 32,
        "intermediate_layers_indices": [0],
    }
    return MllamaConfig(**told)
