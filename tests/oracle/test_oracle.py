"""The oracle itself, held against what transformers can be told directly."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from families import BY_NAME, MLLAMA_STATES, Family, build
from oracle_weights import attention_scores, attention_weights
from torch import Tensor

from mvw_cli.oracle.masked import (
    extended,
    masked_logits,
    oracle_logits,
)

TOLERANCE = 1e-5
OUTPUT = tuple(torch.randint(5, 60, (8,), generator=torch.Generator().manual_seed(3)).tolist())


@cache
def model_of(name: str) -> Any:
    return build(BY_NAME[name])


def asked(name: str, seed: int = 0) -> tuple[Any, dict[str, Tensor], Any]:
    family: Family = BY_NAME[name]
    inputs = family.prompt(seed)
    return model_of(name), inputs, family.layout(inputs)


def some_hidden(inputs: dict[str, Tensor], count: int, seed: int = 0) -> Tensor:
    """Half of the vision tokens, other ones for each row: # (P + T, N)."""
    random = torch.Generator().manual_seed(seed)
    return torch.rand(inputs["input_ids"].shape[1] + len(OUTPUT), count, generator=random) < 0.5


@torch.inference_mode()
def told_directly(
    model: Any, inputs: dict[str, Tensor], hidden: Tensor | None, columns: Tensor
) -> Any:
    """Give a causal mask without the hidden columns to the model's eager attention."""
    longer = extended(model, inputs, OUTPUT)
    rows = longer["input_ids"].shape[1]
    visible = torch.ones(rows, rows, dtype=torch.bool).tril()
    if hidden is not None:
        visible[:, columns] &= ~hidden
    longer["attention_mask"] = torch.zeros(1, 1, rows, rows).masked_fill(~visible, -1e9)
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return model(**longer, use_cache=False, output_attentions=True)
    finally:
        model.set_attn_implementation(before)


def test_rows_and_columns_are_those_of_a_mask_that_transformers_takes() -> None:
    model, inputs, layout = asked("llava")
    hidden = some_hidden(inputs, layout.vision_tokens)
    prompt = inputs["input_ids"].shape[1]
    expected = told_directly(model, inputs, hidden, layout.entries.nonzero()[:, 0])
    logits = masked_logits(model, inputs, OUTPUT, layout, dict.fromkeys(range(3), hidden))
    assert (logits - expected.logits[0, prompt - 1 : -1]).abs().max() < TOLERANCE
    seen = masked_logits(model, inputs, OUTPUT, layout, {})
    assert (logits - seen).abs().amax(dim=1).min() > 100 * TOLERANCE


@pytest.mark.parametrize("hides", [False, True])
def test_weights_are_those_of_eager_attention(hides: bool) -> None:
    model, inputs, layout = asked("llava")
    hidden = some_hidden(inputs, layout.vision_tokens) if hides else None
    columns = layout.entries.nonzero()[:, 0]
    expected = told_directly(model, inputs, hidden, columns).attentions
    by_layer = {} if hidden is None else dict.fromkeys(range(3), hidden)
    rows = [-1, -5, inputs["input_ids"].shape[1] - 1]
    found = attention_weights(model, inputs, OUTPUT, layout, by_layer, [0, 2], rows)
    assert list(found) == [0, 2]
    for layer, weights in found.items():
        assert weights.dtype == torch.float32
        whole = expected[layer][0].mean(dim=0)[rows][:, columns]
        assert (weights - whole).abs().max() < TOLERANCE
        assert weights.std() > 100 * TOLERANCE
        if hidden is not None:
            assert not weights[hidden[rows]].any() and weights[~hidden[rows]].all()
    scores = attention_scores(model, inputs, OUTPUT, layout, by_layer, [1], rows)[1]
    assert (scores.softmax(dim=-1) - expected[1][0][:, rows]).abs().max() < TOLERANCE


def test_each_layer_hides_for_itself() -> None:
    """What is hidden at the last layer changes nothing before it; at none, nothing at all."""
    model, inputs, layout = asked("qwen2_5_vl")
    hidden = some_hidden(inputs, layout.vision_tokens)
    rows = list(range(-len(OUTPUT), 0))
    ask = (model, inputs, OUTPUT, layout)
    plain = attention_weights(*ask, {}, [0, 1, 2], rows)
    late = attention_weights(*ask, {2: hidden}, [0, 1, 2], rows)
    early = attention_weights(*ask, {0: hidden}, [0, 1, 2], rows)
    assert torch.equal(plain[0], late[0]) and torch.equal(plain[1], late[1])
    assert not late[2][hidden[rows]].any()
    for layer in (1, 2):
        assert (early[layer] - plain[layer]).abs().max() > 100 * TOLERANCE
    nothing = torch.zeros_like(hidden)
    assert torch.equal(masked_logits(*ask, {1: nothing}), masked_logits(*ask, {}))


def test_earlier_rows_do_not_change() -> None:
    model, inputs, layout = asked("gemma3")
    hidden = some_hidden(inputs, layout.vision_tokens)
    hidden[: inputs["input_ids"].shape[1] + 2] = False
    ask = (model, inputs, OUTPUT, layout)
    changed, plain = masked_logits(*ask, {1: hidden}), masked_logits(*ask, {})
    assert torch.equal(changed[:3], plain[:3])
    assert (changed[3:] - plain[3:]).abs().max() > 100 * TOLERANCE


def test_a_hidden_tile_is_one_that_the_cross_attention_mask_leaves_out() -> None:
    model, inputs, layout = asked("mllama")
    prompt = inputs["input_ids"].shape[1]
    tile = layout.cross_entries.nonzero()[0, 0] // MLLAMA_STATES
    of_tile = layout.cross_entries.nonzero()[:, 0] // MLLAMA_STATES == tile
    hidden = torch.zeros(prompt + len(OUTPUT), layout.vision_tokens, dtype=torch.bool)
    hidden[prompt - 1 :, of_tile] = True
    longer = extended(model, inputs, OUTPUT)
    mask = longer["cross_attention_mask"] = longer["cross_attention_mask"].clone()
    mask[0, prompt - 1 :, tile // 4, tile % 4] = 0
    with torch.inference_mode():
        expected = model(**longer, use_cache=False).logits[0, prompt - 1 : -1]
    logits = masked_logits(model, inputs, OUTPUT, layout, {1: hidden, 3: hidden})
    assert (logits - expected).abs().max() < TOLERANCE
    plain = masked_logits(model, inputs, OUTPUT, layout, {})
    assert (logits - plain).abs().amax(dim=1).min() > 100 * TOLERANCE


@pytest.mark.parametrize("kind", ["skip", "mlp"])
def test_a_cross_attention_layer_that_shows_nothing_is_passed_by(kind: Any) -> None:
    """At one of two layers; `skip` leaves the stream as it was, `mlp` adds the gated MLP."""
    model, inputs, layout = asked("mllama")
    prompt = inputs["input_ids"].shape[1]
    hidden = torch.ones(prompt + len(OUTPUT), layout.vision_tokens, dtype=torch.bool)
    logits = masked_logits(model, inputs, OUTPUT, layout, {3: hidden}, cross_attention=kind)
    layer = model.get_decoder().layers[3]

    def alone(_: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        stream = args[0]
        if kind == "skip":
            return stream
        added = layer.cross_attn_mlp_gate.tanh() * layer.mlp(layer.post_attention_layernorm(stream))
        seen = extended(model, inputs, OUTPUT)["cross_attention_mask"].flatten(2).any(dim=2)
        return stream + added * seen[..., None]

    handle = layer.register_forward_hook(alone)
    try:
        with torch.inference_mode():
            whole = model(**extended(model, inputs, OUTPUT), use_cache=False).logits
    finally:
        handle.remove()
    assert (logits - whole[0, prompt - 1 : -1]).abs().max() < TOLERANCE
    weights = attention_weights(model, inputs, OUTPUT, layout, {3: hidden}, [1, 3], [-1])
    assert weights[1].sum() == pytest.approx(1) and not weights[3].any()


@pytest.mark.parametrize("name", ["llava", "mllama"])
def test_withdrawal_after_m_tokens_hides_all_from_then_on(name: str) -> None:
    model, inputs, layout = asked(name)
    prompt = inputs["input_ids"].shape[1]
    hidden = torch.zeros(prompt + len(OUTPUT), layout.vision_tokens, dtype=torch.bool)
    hidden[prompt + 2 :] = True
    layers = dict.fromkeys(range(3) if name == "llava" else (1, 3), hidden)
    expected = oracle_logits(model, inputs, OUTPUT, layout.entries, 3)
    assert torch.equal(masked_logits(model, inputs, OUTPUT, layout, layers), expected)


def test_what_makes_no_sense_is_refused_and_the_model_restored() -> None:
    model, inputs, layout = asked("mllama")
    before = model.config.get_text_config()._attn_implementation
    good = torch.zeros(
        inputs["input_ids"].shape[1] + len(OUTPUT), layout.vision_tokens, dtype=torch.bool
    )
    for bad in ({9: good}, {1: good[1:]}, {1: good[:, 1:]}):
        with pytest.raises(ValueError, match="hidden at layer"):
            masked_logits(model, inputs, OUTPUT, layout, bad)
    with pytest.raises(ValueError, match=r"\[0\] hold no vision"):
        attention_weights(model, inputs, OUTPUT, layout, {}, [0, 1], [-1])
    with pytest.raises(RuntimeError):
        broken = {**inputs, "pixel_values": inputs["pixel_values"][..., :7]}
        masked_logits(model, broken, OUTPUT, layout, {1: good})
    assert model.config.get_text_config()._attn_implementation == before
    assert not any(module._forward_hooks for module in model.modules())
