"""Withdrawal from cross-attention layers: both kinds, alone and where rows are mixed."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from families import BY_NAME, build
from running import Run, request, run
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mvw_cli.adapter import VisionLayout
from mvw_cli.engine.cache import LayerKind, SlotCache
from mvw_cli.engine.rows import CHUNK
from mvw_cli.errors import ModelProblem
from mvw_cli.oracle.masked import extended, oracle_logits

TOLERANCE = 1e-5
MLLAMA = BY_NAME["mllama"]

each_kind = pytest.mark.parametrize("kind", ["skip", "mlp"])
each_kernel = pytest.mark.parametrize("kernel", ["sdpa", "eager"])


@cache
def model() -> Any:
    return build(MLLAMA)


def ask(seed: int, m: int | None, **settings: Any) -> Any:
    inputs = MLLAMA.prompt(seed)
    return request(inputs, MLLAMA.layout(inputs), m, name=str(seed), **settings)


def expected(result: Run, seed: int, m: int | None, kind: Any) -> Tensor:
    inputs = MLLAMA.prompt(seed)
    entries = MLLAMA.layout(inputs).entries
    ids = result.completion.token_ids
    return oracle_logits(model(), inputs, ids, entries, m, cross_attention=kind)


@each_kind
@each_kernel
@pytest.mark.parametrize("m", [1, 2, 7])
def test_equals_the_oracle(kind: Any, kernel: str, m: int) -> None:
    for seed in range(5):
        [result] = run(model(), [ask(seed, m)], attention=kernel, cross_attention=kind).values()
        assert (result.logits - expected(result, seed, m, kind)).abs().max() < TOLERANCE


@each_kind
@each_kernel
def test_mixed_rows_do_not_change_each_other(kind: Any, kernel: str) -> None:
    """Withdrawn and seeing rows in one step, images of other shapes, slots that are refilled."""
    plan = [(0, 3, 20), (1, None, 6), (2, 1, 13), (3, 8, 20), (4, 2, 17)]
    requests = [ask(seed, m, max_new_tokens=length) for seed, m, length in plan]
    together = run(model(), requests, slots=3, attention=kernel, cross_attention=kind)
    for seed, m, _ in plan:
        result = together[str(seed)]
        assert (result.logits - expected(result, seed, m, kind)).abs().max() < TOLERANCE


@each_kind
def test_a_row_without_an_image_stays_as_it_is(kind: Any) -> None:
    """A prompt of text alone skips the layers, next to rows that see, saw and do not see."""
    ids = torch.tensor([[1, 5, 6, 7, 8, 9]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    layout = VisionLayout(torch.zeros(6, dtype=torch.bool))
    text = request(inputs, layout, None, name="text")
    generated = model().generate(**inputs, max_new_tokens=20, min_new_tokens=20, do_sample=False)
    for others in ([], [ask(0, 2), ask(1, None)]):
        together = run(model(), [text, *others], slots=3, cross_attention=kind)
        assert list(together["text"].completion.token_ids) == generated[0, 6:].tolist()
        for other in others:
            m = 2 if other.id == "0" else None
            result = together[other.id]
            assert (result.logits - expected(result, int(other.id), m, kind)).abs().max() < 1e-5


def test_tiles_that_nobody_attends_to_are_not_kept() -> None:
    """One of four tiles is the image, the others are padding: a quarter of the states is held."""
    inputs = MLLAMA.prompt(1)
    layout = MLLAMA.layout(inputs)
    assert layout.cross_entries is not None
    assert len(layout.cross_entries) == 4 * layout.vision_tokens
    withdrawal = run(model(), [ask(1, 2)])["1"].completion.withdrawal
    assert withdrawal is not None
    assert withdrawal.entries == 2 * layout.vision_tokens


def test_bytes_are_given_back_when_the_last_row_withdraws() -> None:
    """Counted by storage: a row of one chunk of vision states at each of the two layers goes."""
    alone = run(model(), [ask(0, 2)])["0"].completion
    withdrawal = alone.withdrawal
    assert withdrawal is not None
    states, heads, width, floats = MLLAMA.layout(MLLAMA.prompt(0)).vision_tokens, 2, 8, 4
    freed = 2 * states * heads * 2 * width * floats
    assert withdrawal.kv_bytes_before - withdrawal.kv_bytes_after == freed
    seeing = run(model(), [ask(0, None)])["0"].completion
    room = 2 * CHUNK * heads * 2 * width * floats
    assert seeing.kv_allocated_bytes_end - alone.kv_allocated_bytes_end == room


@each_kind
def test_a_layer_is_empty_by_its_keys_and_by_its_length(kind: str) -> None:
    """Which of the two decides whether it is skipped depends on the release of transformers."""
    slots = SlotCache((LayerKind(), LayerKind()), cross_layers=(1,), keep_mlp=kind == "mlp")
    assert slots.get_seq_length(1) == 0
    prefilled, states = DynamicCache(), torch.ones(3, dtype=torch.bool)
    for layer, length in enumerate((5, 3)):
        prefilled.update(torch.ones(1, 2, length, 8), torch.ones(1, 2, length, 8), layer)
    slot = slots.load(prefilled, 5, vision=True, cross_entries=states)
    assert slots.get_seq_length(1) == slots.layers[1].keys.shape[2] == 3
    slots.withdraw(slot, [torch.zeros(5, dtype=torch.bool), states])
    assert slots.get_seq_length(1) == slots.layers[1].keys.numel() // 16 == (kind == "mlp")


def test_hooks_are_gone_afterwards() -> None:
    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in model().modules())

    before = hooks()
    engine = run(model(), [ask(0, 2)])
    assert engine and hooks() == before
    with pytest.raises(OSError, match="gone"):

        def failing() -> Any:
            yield ask(0, 2)
            raise OSError("gone")

        run(model(), failing(), slots=2)
    assert hooks() == before


def test_an_adapter_that_does_not_tell_the_states_is_refused() -> None:
    inputs = MLLAMA.prompt(0)
    silent = request(inputs, VisionLayout(MLLAMA.layout(inputs).entries), 2)
    with pytest.raises(ModelProblem) as refusal:
        run(model(), [silent])
    assert "vision states" in (refusal.value.cause or "")


def test_a_prompt_that_ends_where_no_image_is_seen_is_refused() -> None:
    inputs = MLLAMA.prompt(1)
    layout = MLLAMA.layout(inputs)
    assert layout.cross_entries is not None
    blind = VisionLayout(layout.entries, torch.zeros_like(layout.cross_entries))
    with pytest.raises(ModelProblem) as refusal:
        run(model(), [request(inputs, blind, 2)])
    assert "no image" in (refusal.value.cause or "")


def test_the_two_kinds_differ() -> None:
    skip, mlp = (
        run(model(), [ask(0, 2)], cross_attention=kind)["0"].logits for kind in ("skip", "mlp")
    )
    assert torch.equal(skip[:2], mlp[:2])
    assert (skip[2] - mlp[2]).abs().max() > 100 * TOLERANCE


@torch.inference_mode()
def test_skipping_is_what_transformers_does_with_emptied_caches() -> None:
    """Step by step with a plain cache whose cross-attention layers are emptied after m tokens."""
    m, inputs = 3, MLLAMA.prompt(0)
    result = run(model(), [ask(0, m)])["0"]
    past = DynamicCache(config=model().config.text_config)
    logits = [model()(**inputs, past_key_values=past).logits[0, -1]]
    mask = extended(model(), inputs, result.completion.token_ids)["cross_attention_mask"]
    for step, token in enumerate(result.completion.token_ids[:-1], start=1):
        if step == m:
            for layer in (1, 3):
                past.layers[layer] = DynamicLayer()  # what `reset` leaves depends on the release
        options = {"cross_attention_mask": mask} if step < m else {}
        ids = torch.tensor([[token]])
        logits.append(model()(input_ids=ids, past_key_values=past, **options).logits[0, -1])
    assert (result.logits - torch.stack(logits)).abs().max() < TOLERANCE
