"""Parameters and KV bytes from a configuration, against real models and the caches they fill."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import BY_NAME, FAMILIES, Family, build
from mvw_hf.model import HuggingFace

from mvw_cli.cost.shape import Count, shape_of
from mvw_cli.errors import ModelProblem


def filled(model: Any, **inputs: torch.Tensor) -> Any:
    with torch.inference_mode():
        return model(**inputs, use_cache=True).past_key_values


COUNTED = [family for family in FAMILIES if family.name != "gemma3n"]
"""That one's vision tower is in timm, which is not installed."""


@pytest.mark.parametrize("family", COUNTED, ids=lambda family: family.name)
def test_a_shape_is_that_of_the_real_model_and_its_cache(family: Family) -> None:
    model, inputs = build(family), family.prompt(2)
    shape = shape_of(HuggingFace(), model.config)
    assert shape.weights.total.numbers == sum(p.numel() for p in model.parameters())
    prompt = inputs["input_ids"].shape[1]
    layers = filled(model, **inputs).layers
    own = [layer for layer in layers if getattr(layer, "keys", None) is not None]
    held = sum(layer.keys.numel() + layer.values.numel() for layer in own)
    vision = int((inputs["input_ids"] == model.config.image_token_id).sum())
    text = prompt - vision
    for layer, real in zip(shape.layers, layers, strict=True):
        if layer.cross:  # its image tokens are text, the vision is beside the sequence
            text, vision = prompt, real.keys.shape[-2]
    assert shape.kv_elements(text, vision) == held
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or [""] * len(layers)
    windows = [{"sliding_attention": 12, "chunked_attention": 20}.get(kind) for kind in kinds]
    assert [layer.window for layer in shape.layers] == windows
    tables = [
        getattr(one, name, {}) for one in layers for name in ("conv_states", "recurrent_states")
    ]
    states = [state for table in tables for state in table.values() if state is not None]
    assert shape.state_bytes(4) == sum(state.nbytes for state in states)
    assert shape.cache_bytes(text, vision, 4) == 4 * held + shape.state_bytes(4)


def test_a_state_in_float32_stays_in_float32() -> None:
    """Qwen3.5's recurrent state, whatever the type of the weights; its convolution's goes along."""
    shape = shape_of(HuggingFace(), build(BY_NAME["qwen3_5"]).config)
    recurrent, convolution = 2 * 4 * 8 * 8, 2 * (2 * 2 * 8 + 4 * 8) * 4
    assert shape.state_bytes(4) == 4 * (recurrent + convolution)
    assert shape.state_bytes(2) == 4 * recurrent + 2 * convolution


@pytest.mark.skipif("gemma4" not in BY_NAME, reason="no such cache in this transformers")
def test_what_is_shared_is_held_once_and_read_by_each() -> None:
    shape = shape_of(HuggingFace(), build(BY_NAME["gemma4"]).config)
    sliding, full = 2 * 2 * 8, 2 * 2 * 16
    assert [layer.elements for layer in shape.layers] == [sliding, full, 0, 0]
    assert [layer.read for layer in shape.layers] == [sliding, full, sliding, full]
    assert shape.kv_elements(40, 20) == 11 * sliding + 60 * full
    assert shape.kv_elements_read(40, 20) == 2 * shape.kv_elements(40, 20)


def test_sliding_layers_hold_no_more_than_their_window() -> None:
    family = BY_NAME["gemma3"]
    shape = shape_of(HuggingFace(), build(family).config)
    one = shape.layers[0].elements
    assert shape.kv_elements(100, 20) == (11 + 120 + 11) * one
    assert shape.kv_elements_per_token() == 3 * one
    assert shape.kv_elements(0, 4) == 3 * 4 * one


def mllama() -> Any:
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    config = MllamaConfig(
        text_config={
            "num_hidden_layers": 5,
            "cross_attention_layers": [1, 3],
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 50,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "intermediate_layers_indices": [1],
            "vision_output_dim": 64,
        },
    )
    return MllamaForConditionalGeneration(config).eval()


def test_cross_attention_layers_hold_vision_and_nothing_else() -> None:
    model = mllama()
    shape = shape_of(HuggingFace(), model.config)
    ids, states = torch.ones(1, 7, dtype=torch.long), torch.zeros(1, 10, 64)
    cache = filled(model, input_ids=ids, cross_attention_states=states)
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert [layer.cross for layer in shape.layers] == [False, True, False, True, False]
    assert shape.kv_elements(7, 10) == held
    assert shape.kv_elements_per_token() == 3 * 2 * 2 * 16
    assert shape.kv_elements(0, 10) == 10 * 2 * 2 * 2 * 16


def test_a_step_reads_neither_the_lookup_nor_the_tower_nor_what_is_cached() -> None:
    model = mllama()
    weights = shape_of(HuggingFace(), model.config).weights
    language = model.model.language_model
    crossed = [language.layers[1], language.layers[3]]

    def numbers(*modules: Any) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    once = sum(numbers(x.cross_attn.k_proj, x.cross_attn.v_proj, x.cross_attn.k_norm)
               for x in crossed)  # fmt: skip
    kept = sum(numbers(x.mlp, x.post_attention_layernorm) + 1 for x in crossed)  # and its gate
    assert weights.vision == numbers(model.model.vision_model, model.model.multi_modal_projector)
    assert weights.step.numbers == (
        numbers(language, model.lm_head) - numbers(language.embed_tokens) - once
    )
    assert weights.active == weights.step.numbers
    assert weights.cross.numbers == numbers(*crossed) - once
    assert weights.cross.numbers - weights.cross_attention.numbers == kept


def test_what_quantisation_takes_of_a_step() -> None:
    model = mllama()
    weights = shape_of(HuggingFace(), model.config).weights
    language = model.model.language_model
    crossed = [language.layers[1], language.layers[3]]

    def linear(*modules: Any) -> int:
        found = (m for module in modules for m in module.modules())
        return sum(m.weight.numel() for m in found if isinstance(m, torch.nn.Linear))

    once = sum(linear(x.cross_attn.k_proj, x.cross_attn.v_proj) for x in crossed)
    assert weights.total.quantizable == linear(model) - linear(model.lm_head)
    assert weights.step.quantizable == linear(language) - once
    assert weights.cross.quantizable == linear(*crossed) - once
    assert weights.cross_attention.quantizable == sum(
        linear(x.cross_attn.q_proj, x.cross_attn.o_proj) for x in crossed
    )
    assert weights.experts.quantizable == 0


def test_experts_count_as_often_as_they_are_chosen() -> None:
    family = BY_NAME["kimi_text_stack"]
    weights = shape_of(HuggingFace(), build(family).config).weights
    assert weights.experts.numbers == 2 * 4 * (
        32 * 32 + 32 * 16
    )  # layers, experts, gate + up and down
    assert (weights.experts_total, weights.experts_per_token) == (4, 2)
    assert weights.active == weights.step.numbers + weights.experts.numbers // 2
    assert weights.experts.quantizable == 0  # they are held in one tensor
    assert weights.read(1).numbers == weights.active
    assert weights.read(2).numbers == weights.step.numbers + weights.experts.numbers * 0.75
    assert weights.read(64).numbers == pytest.approx(
        weights.step.numbers + weights.experts.numbers, rel=1e-6
    )


def test_a_mixture_of_experts_at_its_true_shape() -> None:
    """Kimi-VL's language model is Moonlight-16B-A3B's: 15.96 billion, about 3 of them active.

    Source: `config.json` and card of moonshotai/Moonlight-16B-A3B.
    """
    from transformers import CLIPVisionConfig, DeepseekV3Config, LlavaConfig

    text = DeepseekV3Config(
        vocab_size=163840,
        hidden_size=2048,
        intermediate_size=11264,
        moe_intermediate_size=1408,
        num_hidden_layers=27,
        num_attention_heads=16,
        num_key_value_heads=16,
        n_shared_experts=2,
        n_routed_experts=64,
        num_experts_per_tok=6,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        qk_nope_head_dim=128,
        v_head_dim=128,
    )
    config = LlavaConfig(text_config=text, vision_config=CLIPVisionConfig(), image_token_id=5)
    shape = shape_of(HuggingFace(), config)
    language = shape.weights.total.numbers - shape.weights.vision
    assert f"{language / 1e9:.2f}" == "15.96"
    assert f"{(shape.weights.active + 163840 * 2048) / 1e9:.1f}" == "2.9"  # with the lookup
    assert shape.kv_elements_per_token() == 27 * (512 + 64)  # the latent, not the heads


def test_tied_weights_are_counted_once_and_read_as_the_head() -> None:
    from mvw_shapes.model import Shapes

    model = Shapes().tiny().model
    assert model.config.tie_word_embeddings
    weights = shape_of(HuggingFace(), model.config).weights
    assert weights.total.numbers == sum(p.numel() for p in model.parameters())
    assert weights.step.numbers == sum(p.numel() for p in model.get_decoder().parameters())


def test_bytes_of_the_weights() -> None:
    total = Count(1000, 640)
    assert total.bytes("float32") == 4000
    assert total.bytes("bfloat16") == 2000
    assert total.bytes("float16", bits=8) == 360 * 2 + 640
    assert total.bytes("float16", bits=4) == 360 * 2 + 640 // 2 + 640 // 64 * 4


def test_the_dtype_is_the_checkpoints() -> None:
    config = HuggingFace().tiny().model.config
    assert shape_of(HuggingFace(), config).dtype == "float32"
    config.dtype = torch.bfloat16
    assert shape_of(HuggingFace(), config).dtype == "bfloat16"


def test_a_model_that_can_not_run_on_meta_is_a_model_problem() -> None:
    class Odd(HuggingFace):
        def build(self, config: Any) -> Any:
            model = super().build(config)
            model.forward = lambda **_: model.config.nothing_of_the_kind
            return model

    with pytest.raises(ModelProblem, match="can't be counted without its weights"):
        shape_of(Odd(), HuggingFace().tiny().model.config)
