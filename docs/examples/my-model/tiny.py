"""Gemma 3 with a few thousand random weights and its own processor, made without any download."""

from __future__ import annotations

from typing import Any

_WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "<start>", "<soft>", "<end>"]
_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<start> ' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def tiny_gemma() -> tuple[Any, Any]:
    """Build model and processor; the same weights each time."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vocabulary = {word: i for i, word in enumerate([*_WORDS, *(f"w{i}" for i in range(57))])}
    config = Gemma3Config(
        text_config={
            "vocab_size": len(vocabulary),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            # Both kinds of layer, and a window that is shorter than the prompt.
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 12,
            "max_position_embeddings": 512,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            # The usual 0.02 makes every distribution flat, and any mistake too small to see.
            "initializer_range": 0.3,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "vision_use_head": False,
        },
        mm_tokens_per_image=4,
        boi_token_id=vocabulary["<start>"],
        image_token_id=vocabulary["<soft>"],
        eoi_token_id=vocabulary["<end>"],
    )
    # The random numbers of whoever calls this are left as they are.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Gemma3ForConditionalGeneration(config).eval()
        # transformers starts it at zero, which would make every image the same.
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    return model, _processor(vocabulary)


def _processor(vocabulary: dict[str, int]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Gemma3Processor, PreTrainedTokenizerFast
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        boi_token="<start>",
        image_token="<soft>",
        eoi_token="<end>",
    )
    return Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer,
        chat_template=_TEMPLATE,
        image_seq_length=4,
    )
