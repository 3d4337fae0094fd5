"""Layers without entries of their own, and chunks: failed steps, company, and what is refused."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from families import BY_NAME, IMAGE, VISION_END, VISION_START, build, there
from policy_rules import masks_of, vtw
from policy_subjects import Served, Subject
from running import loaded, request, run
from transformers import DynamicCache, Gemma3nTextConfig, Lfm2Config

from mvw_cli.calibrate.branches import branch_logits
from mvw_cli.cli.infer.view import withdrawal_line
from mvw_cli.engine.cache import layer_kinds
from mvw_cli.engine.engine import Engine
from mvw_cli.engine.layer_exits import decoder_layers
from mvw_cli.engine.slots import Slots
from mvw_cli.engine.types import Event, Finished, NotExact, Token, Withdrawn
from mvw_cli.errors import ModelProblem, UsageProblem
from mvw_cli.oracle.masked import oracle_logits
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.random import Random
from mvw_cli.policies.vtw import Vtw
from mvw_cli.policy import WithdrawalPolicy

TOLERANCE = 1e-5
each_kind = pytest.mark.parametrize("name", there("qwen3_5", "lfm3_vl", "llama4", "gemma3n"))
each_sharing = pytest.mark.skipif(not there("gemma3n"), reason="no such cache")


@cache
def model_of(name: str) -> Any:
    return build(BY_NAME[name])


def asked(name: str, seed: int, m: int | None, tokens: int, **more: Any) -> Any:
    inputs = BY_NAME[name].prompt(seed)
    layout = BY_NAME[name].layout(inputs)
    return request(inputs, layout, m, name=str(seed), max_new_tokens=tokens, **more)


class Watched:
    """Slots over a tiny model, and the logits of all that they choose from."""

    def __init__(self, name: str) -> None:
        self.logits: dict[tuple[str, int], torch.Tensor] = {}
        self.serving = Engine(loaded(model_of(name))).serving(observe=self._see)

    def _see(self, name: str, step: int, row: torch.Tensor) -> None:
        self.logits[name, step] = row.clone()

    def finish(self, slots: Slots, events: list[Event]) -> dict[str, tuple[int, ...]]:
        while slots.active:
            events += slots.step()
        return {event.request: event.token_ids for event in events if isinstance(event, Finished)}


def both(name: str) -> list[Any]:
    return [asked(name, 1, 3, 8), asked(name, 2, 5, 9)]


@each_kind
def test_a_step_that_fails_half_way_can_be_made_again(name: str) -> None:
    """Memory runs out after each layer in turn, at each step: no logit differs by a bit."""
    plain, broken = Watched(name), Watched(name)
    with plain.serving as slots:
        undisturbed = plain.finish(slots, [e for one in both(name) for e in slots.admit(one)])

    def fail(*args: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    layers = decoder_layers(model_of(name))
    with broken.serving as slots:
        events = [event for one in both(name) for event in slots.admit(one)]
        while slots.active:
            for layer in layers:
                handle = layer.register_forward_hook(fail)
                before = slots.kv_bytes
                with pytest.raises(torch.OutOfMemoryError):
                    slots.step()
                handle.remove()
                assert slots.kv_bytes == before
            events += slots.step()
    assert broken.finish(slots, events) == undisturbed
    assert broken.logits.keys() == plain.logits.keys()
    assert all(torch.equal(row, plain.logits[key]) for key, row in broken.logits.items())


@each_kind
def test_requests_leave_and_come_back(name: str) -> None:
    """One is dropped on its way and asked again, while others come, go and are withdrawn."""
    alone = {}
    for one in (*both(name), asked(name, 3, 1, 6), asked(name, 4, None, 7)):
        watched = Watched(name)
        with watched.serving as slots:
            alone |= watched.finish(slots, slots.admit(one))
    watched = Watched(name)
    with watched.serving as slots:
        events = [event for one in both(name) for event in slots.admit(one)]
        events += slots.step() + slots.step() + slots.step()
        slots.drop("1")
        events = [event for event in events if event.request == "2"]
        events += slots.admit(asked(name, 3, 1, 6)) + slots.step()
        events += slots.admit(both(name)[0]) + slots.step() + slots.admit(asked(name, 4, None, 7))
        assert watched.finish(slots, events) == alone
        assert slots.kv_allocated_bytes == 0


@pytest.mark.parametrize("seed", [1, 9])
@pytest.mark.parametrize("m", [1, 4])
def test_chunks_begin_where_they_did(seed: int, m: int) -> None:
    """Two chunks are left behind, the first with the image in it or by then without it."""
    result = run(model_of("llama4"), [asked("llama4", seed, m, 30)])[str(seed)]
    inputs = BY_NAME["llama4"].prompt(seed)
    prompt = inputs["input_ids"].shape[1]
    assert (prompt < 20) == (seed == 1) and prompt + 30 > 40
    vision = inputs["input_ids"][0] == IMAGE
    ids = result.completion.token_ids
    expected = oracle_logits(model_of("llama4"), inputs, ids, vision, m)
    assert (result.logits - expected).abs().max() < TOLERANCE


def test_two_images_and_a_tag_that_withdraws_them() -> None:
    """Two images of different size in one prompt; withdrawn where a text has been written."""
    first, second = (BY_NAME["qwen3_5"].prompt(seed) for seed in (0, 1))
    ids = torch.cat([first["input_ids"], second["input_ids"][:, 1:]], dim=1)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).int(),
        **{key: torch.cat([first[key], second[key]]) for key in ("pixel_values", "image_grid_thw")},
    }
    assert (ids == VISION_START).sum() == (ids == VISION_END).sum() == 2

    class Words:
        def decode(self, ids: Any, **options: Any) -> str:
            return " ".join(f"w{int(one)}" for one in ids)

    model = model_of("qwen3_5")
    free = run(model, [request(inputs, ids[0] == IMAGE, None, max_new_tokens=12)])["a"]
    tag = f"w{free.completion.token_ids[4]}"
    step = next(n for n, one in enumerate(free.completion.token_ids, 1) if f"w{one}" == tag)
    policy = Mvw(until=tag)
    asked_for = request(inputs, ids[0] == IMAGE, None, policy=policy, max_new_tokens=12)
    result = run(model, [asked_for], processor=Words())["a"]
    assert result.completion.withdrawal is not None
    assert result.completion.withdrawal.step == step
    expected = oracle_logits(model, inputs, result.completion.token_ids, ids[0] == IMAGE, step)
    assert (result.logits - expected).abs().max() < TOLERANCE
    seeing = oracle_logits(model, inputs, result.completion.token_ids, ids[0] == IMAGE, None)
    assert (seeing - expected)[step:].abs().max() > 100 * TOLERANCE


def test_states_are_counted_as_kept() -> None:
    """In the events and in the line about them; and where there are none, nothing is said."""
    result = run(model_of("qwen3_5"), [asked("qwen3_5", 1, 3, 6)])["1"]
    [event] = [event for event in result.events if isinstance(event, Withdrawn)]
    states = 2 * (4 * 8 * 8 + (2 * 2 * 8 + 4 * 8) * 4) * 4
    assert (event.recurrent_layers, event.state_bytes) == (2, states)
    assert event.kv_bytes_after > states
    assert result.completion.withdrawal is not None
    assert result.completion.withdrawal.state_bytes == states
    assert withdrawal_line(event).endswith("freed; the states of 2 recurrent layers stay")
    plain = run(model_of("llama4"), [asked("llama4", 1, 3, 6)])["1"]
    [event] = [event for event in plain.events if isinstance(event, Withdrawn)]
    assert (event.recurrent_layers, event.state_bytes) == (0, 0)
    assert withdrawal_line(event).endswith("freed")


@pytest.mark.parametrize(
    ("name", "policy", "cause"),
    [
        ("qwen3_5", Vtw(layer=1), "layer 2 keeps a recurrent state"),
        ("qwen3_5", Random(keep=0.5), "layer 0 keeps a recurrent state"),
        ("lfm2_vl", Vtw(layer=2), "layer 2 keeps a recurrent state"),
        ("gemma3n", Vtw(layer=1), "layer 2 reads what layer 0 holds"),
        ("gemma4", Random(keep=0.5), "layer 2 reads what layer 0 holds"),
    ],
)
def test_what_a_layer_can_not_do_without_is_not_taken(
    name: str, policy: WithdrawalPolicy, cause: str
) -> None:
    if not there(name):
        pytest.skip("this transformers has no such cache")
    with pytest.raises(UsageProblem) as refusal:
        run(model_of(name), [asked(name, 1, None, 6, policy=policy)])
    assert cause in (refusal.value.cause or "")


def test_after_the_last_state_tokens_may_leave_in_the_prefill() -> None:
    family, layers = BY_NAME["lfm2_vl"], ["conv", "conv", "full_attention"]
    made = family.build()
    text = {**made.config.text_config.to_dict(), "layer_types": layers, "full_attn_idxs": None}
    made.config.text_config = Lfm2Config(**text)
    torch.manual_seed(0)
    model = type(made)(made.config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
        model.get_output_embeddings().weight[VISION_END - 2 :] = 0
    asked_for = asked("lfm2_vl", 1, None, 8, policy=Vtw(layer=2))
    result = run(model, [asked_for])["1"]
    texts = tuple(event.text for event in result.events if isinstance(event, Token))
    ids = result.completion.token_ids
    events = tuple(result.events)
    served = Served(
        Subject("lfm2_vl", loaded(model)), asked_for, events, result.logits, ids, texts, "skip"
    )
    expected = served.expected(masks_of(served, [vtw(2)]))
    assert (result.logits - expected).abs().max() < TOLERANCE
    assert (served.expected(served.nothing()) - expected).abs().max() > 100 * TOLERANCE


@each_sharing
def test_a_layer_that_reads_other_keys_is_refused() -> None:
    """The configuration says what it shares; the model is held to it."""
    model = build(BY_NAME["gemma3n"])
    model.get_decoder().layers[2].self_attn.layer_type = "full_attention"
    with pytest.raises(ModelProblem) as refusal:
        run(model, [asked("gemma3n", 1, 2, 6)])
    assert "reads other keys and values" in (refusal.value.cause or "")


@each_sharing
def test_a_sharing_layer_that_goes_its_own_way_is_refused() -> None:
    model = build(BY_NAME["gemma3n"])
    attention = model.get_decoder().layers[3].self_attn
    attention.config = copy.deepcopy(attention.config)  # out of reach of the model's switch
    with pytest.raises(ModelProblem) as refusal:
        run(model, [asked("gemma3n", 1, 2, 6)])
    assert "layers [3]" in (refusal.value.cause or "")


@each_sharing
def test_what_is_shared_is_that_of_the_last_layer_of_the_same_kind() -> None:
    """Gemma 3n's published layout: the last 15 of 35 layers share."""
    text = Gemma3nTextConfig()
    kinds = layer_kinds(DynamicCache(config=text), text)
    assert all(kind.holds for kind in kinds[:20])
    sliding = [kind.producer for kind in kinds[20:] if kind.span is not None]
    full = [kind.producer for kind in kinds[20:] if kind.span is None]
    assert (set(sliding), set(full)) == ({18}, {19})
    assert (len(sliding), len(full)) == (12, 3)


@pytest.mark.parametrize("name", there("qwen3_5", "gemma3n", "llama4"))
def test_all_layers_in_one_pass_is_left_to_the_slower_way(name: str) -> None:
    """`mvw calibrate vtw` tries them one by one there, or says why it can't."""
    inputs = BY_NAME[name].prompt(1)
    with pytest.raises(NotExact):
        branch_logits(model_of(name), inputs, BY_NAME[name].layout(inputs), [1])
