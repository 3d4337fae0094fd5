"""Tiny models with processors, made without any download: a LLaVA, and any family's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from mvw_hf.fallback import FallbackProcessor, fallback_processor

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


# -- the model of a configuration, made small -----------------------------------------------------

_LAYERS, _HEADS, _HEAD, _SIDE, _WORDS_LEFT = 2, 2, 16, 8, 64
_SMALL = {
    **dict.fromkeys(("num_hidden_layers", "depth"), _LAYERS),
    **dict.fromkeys(("num_attention_heads", "num_heads"), _HEADS),
    # One width for all of them, so that those that have to be equal are.
    **dict.fromkeys(("hidden_size", "embed_dim", "out_hidden_size"), _HEADS * _HEAD),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size"), 48),
    **dict.fromkeys(("head_dim", "query_pre_attn_scalar"), _HEAD),
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 12,  # shorter than a prompt
}
_TOKEN = re.compile(r"^[a-z].*_(token_(id|index)|patch_id)$")


def tiny_of(
    config: PreTrainedConfig, build: Callable[[PreTrainedConfig], PreTrainedModel]
) -> tuple[PreTrainedModel, FallbackProcessor | None]:
    """Build the model of a configuration made small; the same weights each time.

    Its processor is None where how the family prepares images is not known here.
    """
    config = shrunk(config)
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(0)
        model = build(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                if not parameter.any():  # Gemma's projector: every image would look the same
                    parameter.normal_(std=0.02)
                # The usual 0.02 makes every distribution flat, and any mistake too small to see.
                parameter.mul_(6)
    return model, fallback_processor(config)


def shrunk(config: PreTrainedConfig) -> PreTrainedConfig:
    """Take away layers, heads, width, and most of each picture and of the vocabulary.

    Two of everything are left: kinds of layers, groups of heads, experts.
    """
    config = deepcopy(config)
    config.dtype = torch.float32
    text, vision = config.get_text_config(), config.vision_config
    ids = sorted({one for *_, value in _tokens(config) for one in value})
    beyond = sum(one >= text.vocab_size for one in ids)  # of the output layer
    renamed = {one: _WORDS_LEFT + place for place, one in enumerate(ids)}
    for part, name, value in list(_tokens(config)):
        new = [renamed[one] for one in value]
        setattr(part, name, new if isinstance(getattr(part, name), list) else new[0])
    kinds = list(dict.fromkeys(getattr(text, "layer_types", None) or ()))
    grouped = text.num_key_value_heads < text.num_attention_heads
    shares = bool(getattr(text, "num_kv_shared_layers", 0))
    if shares:
        text = config.text_config = _sharing(text, kinds)
    if hasattr(config, "audio_config"):
        config.audio_config = None
    adapter = getattr(config, "adapter_config", None)  # of Molmo 2, between vision and text
    parts = [vision] if shares else [text, vision] if adapter is None else [text, vision, adapter]
    for part in parts:
        for name, size in _SMALL.items():
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, size)
    text.vocab_size = _WORDS_LEFT + len(ids) - beyond
    text.num_key_value_heads = 1 if grouped else _HEADS
    if isinstance(getattr(vision, "num_key_value_heads", None), int):
        vision.num_key_value_heads = _HEADS
    if shares:
        text.vocab_size_per_layer_input = text.vocab_size
    elif kinds:
        text.layer_types = (kinds * _LAYERS)[:_LAYERS]
    rope = text.rope_parameters
    if "mrope_section" in rope:
        turned = int(_HEAD * rope.get("partial_rotary_factor", 1)) // 2
        text.rope_parameters = {**rope, "mrope_section": _parted(rope["mrope_section"], turned)}
    for name in ("fullatt_block_indexes", "deepstack_visual_indexes"):
        if hasattr(vision, name):
            setattr(vision, name, [_LAYERS - 1])
    side = _SIDE
    if adapter is not None:
        adapter.num_key_value_heads, adapter.text_hidden_size = _HEADS, text.hidden_size
        adapter.vision_feature_layer = list(range(_LAYERS))
        text.rope_scaling_layers = list(range(_LAYERS))
        side += 2  # crops overlap by eight patches
        vision.num_position_embeddings = side**2
    if hasattr(vision, "image_size"):
        sides = [vision.image_size, vision.patch_size]
        size, patch = (one if isinstance(one, int) else one[0] for one in sides)
        shrink = getattr(config, "scale_factor", 1)
        small = side // shrink * shrink * patch
        vision.image_size = small if isinstance(sides[0], int) else [small, small]
        for name in ("mm_tokens_per_image", "image_seq_length"):
            if hasattr(config, name):
                setattr(config, name, getattr(config, name) * _SIDE**2 // (size // patch) ** 2)
        if hasattr(config, "image_grid_pinpoints"):
            grids = config.image_grid_pinpoints
            config.image_grid_pinpoints = [[one // size * small for one in grid] for grid in grids]
    return config


def _sharing(text: PreTrainedConfig, kinds: list[str]) -> PreTrainedConfig:
    """Leave one layer of each kind, and another that attends to what that one holds.

    Layers of Gemma 4 have settings of their own, which its configuration makes from these.
    """
    told = text.to_dict()
    told.pop("per_layer_config", None)
    told |= {name: size for name, size in _SMALL.items() if isinstance(told.get(name), int)}
    told |= {
        "num_hidden_layers": 2 * len(kinds),
        "num_kv_shared_layers": len(kinds),
        "layer_types": kinds * 2,
        "global_head_dim": 2 * _HEAD,
        "num_key_value_heads": 1,
        "hidden_size_per_layer_input": _HEAD,
    }
    return type(text)(**told)


def _tokens(config: PreTrainedConfig) -> Iterator[tuple[PreTrainedConfig, str, list[int]]]:
    """Yield where the ids of special tokens stand, and these."""
    for part in (config, config.get_text_config()):
        for name, value in list(vars(part).items()):
            told = value if isinstance(value, list) else [value]
            if _TOKEN.search(name) and all(isinstance(one, int) and one >= 0 for one in told):
                yield part, name, told


def _parted(sections: list[int], whole: int) -> list[int]:
    """Divide a whole number as these sections divide theirs."""
    ends = [round(whole * sum(sections[: n + 1]) / sum(sections)) for n in range(len(sections))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
