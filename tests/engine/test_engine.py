"""The decode loop: events, stops, sampling, memory, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import FAMILIES, IMAGE, build
from mvw_hf.model import HuggingFace
from oracle_weights import attention_scores
from PIL import Image
from policy_rules import after, masks_of, vtw
from policy_subjects import asked, serve, subject
from running import loaded, request, run

from mvw_cli.adapter import LoadedModel, ModelSpec
from mvw_cli.engine.engine import Engine
from mvw_cli.engine.rows import CHUNK
from mvw_cli.engine.types import Admitted, Finished, NotFinite, Prefilled, Token, Withdrawn
from mvw_cli.errors import ModelProblem, UsageProblem
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policies.vtw import Vtw
from mvw_cli.policy import WithdrawalPolicy

ADAPTER = HuggingFace()


@pytest.fixture(scope="module")
def tiny() -> Any:
    return ADAPTER.tiny()


@pytest.fixture
def ask(tiny: Any) -> Any:
    """Make a request to the tiny LLaVA about an image of one colour."""

    def make(m: int | None = None, colour: str = "red", **options: Any) -> Any:
        image = Image.new("RGB", (40, 30), colour)
        inputs = ADAPTER.encode(tiny, [image], "w1 w2")
        return request(inputs, ADAPTER.vision(tiny, inputs).entries, m, **options)

    return make


def go(tiny: Any, *requests: Any, **engine: Any) -> Any:
    return run(tiny.model, requests, processor=tiny.processor, **engine)


def test_events_come_in_order_with_rising_times(tiny: Any, ask: Any) -> None:
    events = go(tiny, ask(3, max_new_tokens=6))["a"].events
    kinds = [type(event) for event in events]
    assert kinds == [Admitted, Prefilled, *[Token] * 3, Withdrawn, *[Token] * 3, Finished]
    stamps = [event.at for event in events]
    assert stamps == sorted(stamps)
    assert [event.step for event in events if isinstance(event, Token)] == [1, 2, 3, 4, 5, 6]


def test_stops_at_the_end_token(tiny: Any, ask: Any) -> None:
    free = go(tiny, ask(max_new_tokens=12))["a"].completion
    fifth = free.token_ids[4]
    before = tiny.model.generation_config.eos_token_id
    tiny.model.generation_config.eos_token_id = [2, fifth]
    try:
        stopped = go(tiny, ask(max_new_tokens=12, ignore_eos=False))["a"].completion
    finally:
        tiny.model.generation_config.eos_token_id = before
    assert stopped.finish_reason == "eos"
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(fifth) + 1]


def test_stops_at_a_stop_string_that_spans_tokens(tiny: Any, ask: Any) -> None:
    free = go(tiny, ask(max_new_tokens=12))["a"].completion
    words = free.text.split()
    stop = f"{words[2]} {words[3]}"
    stopped = go(tiny, ask(max_new_tokens=12, stop=(stop,)))["a"].completion
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.index(stop) + len(stop)]


def test_stops_at_a_stop_string_that_ends_inside_a_token(tiny: Any, ask: Any) -> None:
    """The token that completes it is the last one, and is shown to its end."""
    free = go(tiny, ask(max_new_tokens=12))["a"]
    before, stops = "", {}
    for event in free.events:
        if isinstance(event, Token):
            inside = before[-1:] + event.text[:-1]
            if len(event.text) > 2 and inside not in before:
                stops[event.step] = inside, before + event.text
            before += event.text
    assert len(stops) > 2
    for step, (stop, text) in stops.items():
        stopped = go(tiny, ask(max_new_tokens=12, stop=(stop,)))["a"].completion
        assert (stopped.finish_reason, stopped.generated_tokens) == ("stop", step)
        assert stopped.text == text and not text.endswith(stop)


def test_length_is_the_last_resort(tiny: Any, ask: Any) -> None:
    completion = go(tiny, ask(max_new_tokens=1))["a"].completion
    assert (completion.finish_reason, completion.generated_tokens) == ("length", 1)
    assert completion.timings.tokens_per_s is None


def test_no_withdrawal_after_the_last_token(tiny: Any, ask: Any) -> None:
    assert go(tiny, ask(5, max_new_tokens=5))["a"].completion.withdrawal is None


def test_sampling_is_seeded_and_independent_of_the_batch(tiny: Any, ask: Any) -> None:
    def sampled(seed: int, name: str) -> Any:
        return ask(4, name=name, temperature=1.0, seed=seed, max_new_tokens=16)

    alone = go(tiny, sampled(1, "a"))["a"].completion.token_ids
    assert go(tiny, sampled(1, "a"))["a"].completion.token_ids == alone
    assert go(tiny, sampled(2, "a"))["a"].completion.token_ids != alone
    together = go(tiny, sampled(7, "x"), sampled(1, "a"), ask(2, name="greedy"), slots=3)
    assert together["a"].completion.token_ids == alone


def test_the_models_own_logits_processors_are_used(tiny: Any, ask: Any) -> None:
    inputs = ask().inputs
    options = {"max_new_tokens": 14, "min_new_tokens": 14, "do_sample": False}
    expected = tiny.model.generate(**inputs, **options, repetition_penalty=5.0)
    prompt = inputs["input_ids"].shape[1]
    penalised = go(tiny, ask(max_new_tokens=14, repetition_penalty=5.0))["a"].completion
    assert list(penalised.token_ids) == expected[0, prompt:].tolist()
    plain = go(tiny, ask(max_new_tokens=14))["a"].completion
    assert penalised.token_ids != plain.token_ids
    # And one that the checkpoint asks for by itself.
    tiny.model.generation_config.no_repeat_ngram_size = 1
    try:
        expected = tiny.model.generate(**inputs, **options)
        own = go(tiny, ask(max_new_tokens=14))["a"].completion
    finally:
        tiny.model.generation_config.no_repeat_ngram_size = None
    assert list(own.token_ids) == expected[0, prompt:].tolist()
    assert len(set(own.token_ids)) == 14


@pytest.mark.parametrize("policy", [NoWithdrawal(), Mvw(m=12), Vtw(layer=2)])
def test_vision_attended_is_what_the_oracle_lets_the_query_see(policy: WithdrawalPolicy) -> None:
    """Token by token, while sliding windows leave the vision behind one token at a time."""
    gemma, counts = subject("gemma3"), set()
    rules = [vtw(2)] if isinstance(policy, Vtw) else []
    for seed in range(3):
        [served] = serve(gemma, [asked(gemma, policy, seed, max_new_tokens=20)]).values()
        stepwise = after(12) if isinstance(policy, Mvw) else None
        masks = masks_of(served, rules, stepwise)
        places = served.request.layout.entries.nonzero()[:, 0]
        tokens = served.of(Token)
        rows = [served.row(event.step) for event in tokens]
        scores = attention_scores(*served._asked(masks), gemma.vision_layers, rows)
        for row, event in enumerate(tokens):
            seen = [int(one[0, row, places].isfinite().sum()) for one in scores.values()]
            assert event.vision_attended == sum(seen) / len(seen), event.step
            counts.add(tuple(seen))
    assert {(n, 4, n) for n in range(5)} <= counts or not isinstance(policy, NoWithdrawal)
    assert len(counts) > 4


def test_an_engine_can_be_used_again_and_abandoned(tiny: Any, ask: Any) -> None:
    engine = Engine(loaded(tiny.model, tiny.processor), slots=2)
    first = [e for e in engine.run([ask(2)]) if isinstance(e, Finished)]
    abandoned = engine.run([ask(2), ask(2, name="b")])
    for _ in range(5):
        next(abandoned)
    abandoned.close()
    assert tiny.model.config.text_config._attn_implementation == "sdpa"
    again = [e for e in engine.run([ask(2)]) if isinstance(e, Finished)]
    assert again[0].token_ids == first[0].token_ids


def test_flash_is_refused_with_its_reason_where_it_is_missing(tiny: Any) -> None:
    with pytest.raises(UsageProblem, match="attention: flash is not to be had here") as refusal:
        Engine(loaded(tiny.model), attention="flash")
    assert "flash-attn" in (refusal.value.cause or "")
    assert refusal.value.hint == "mvw infer IMAGE QUESTION --attention auto"


class TestRefusals:
    """A model that can't be served exactly is refused, before it says anything wrong."""

    def refuse(self, model: Any, inputs: Any = None) -> str:
        inputs = inputs or FAMILIES[0].prompt(0)
        with pytest.raises(ModelProblem) as refusal:
            run(model, [request(inputs, inputs["input_ids"][0] == IMAGE, 2)])
        assert model.config.get_text_config()._attn_implementation in ("sdpa", "eager")
        return refusal.value.cause or ""

    def test_encoder_decoder(self) -> None:
        from transformers import T5Config, T5ForConditionalGeneration

        config = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=100)
        assert "encoder-decoder" in self.refuse(T5ForConditionalGeneration(config).eval())

    def test_attention_that_goes_its_own_way(self) -> None:
        """A layer that bypasses the interface would attend without the slots' masks."""
        model = build(FAMILIES[0])
        attention = model.model.language_model.layers[1].self_attn
        attention.config = copy.deepcopy(attention.config)  # out of reach of the model's switch
        assert "layers [1]" in self.refuse(model)


def test_text_is_the_tokenizers_own(tiny: Any, ask: Any) -> None:
    result = go(tiny, ask(2, max_new_tokens=12))["a"]
    pieces = "".join(event.text for event in result.events if isinstance(event, Token))
    expected = tiny.processor.tokenizer.decode(
        result.completion.token_ids, skip_special_tokens=True
    )
    assert pieces == result.completion.text == expected


def test_until_withdraws_at_the_token_that_completes_the_tag(tiny: Any, ask: Any) -> None:
    free = go(tiny, ask(max_new_tokens=12))["a"].completion
    words = free.text.split()
    tag = f"{words[3]} {words[4]}"
    steps = [e.step for e in go(tiny, ask(max_new_tokens=12))["a"].events if isinstance(e, Token)]
    assert len(steps) == 12
    result = go(tiny, ask(policy=Mvw(until=tag), max_new_tokens=12))["a"]
    text, completed_at = "", 0
    for event in result.events:
        if isinstance(event, Token):
            text += event.text
            if tag in text:
                completed_at = event.step
                break
    assert result.completion.withdrawal is not None
    assert result.completion.withdrawal.step == completed_at > 0
    # Whichever comes first.
    early = go(tiny, ask(policy=Mvw(m=2, until=tag), max_new_tokens=12))["a"].completion
    assert early.withdrawal is not None
    assert early.withdrawal.step == 2


def test_withdrawal_gives_memory_back() -> None:
    """The storages shrink: a view of the old ones would keep their bytes alive."""
    llava = FAMILIES[0]
    inputs = llava.prompt(0)
    copies = 3 * CHUNK // 16
    ids = inputs["input_ids"]
    image = torch.full((1, 16 * copies), IMAGE)
    inputs = {
        "input_ids": torch.cat([ids[:, :3], image, ids[:, -4:]], dim=1),
        "pixel_values": inputs["pixel_values"].repeat(copies, 1, 1, 1),
    }
    vision = inputs["input_ids"][0] == IMAGE
    model = build(llava)

    def allocated(m: int | None) -> int:
        return run(model, [request(inputs, vision, m)])["a"].completion.kv_allocated_bytes_end

    kept, withdrawn = allocated(None), allocated(2)
    per_entry = 3 * 2 * 2 * 8 * 4  # layers, key and value, heads, width, bytes
    assert kept == 4 * CHUNK * per_entry
    assert withdrawn == CHUNK * per_entry


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3}])
def test_a_request_whose_numbers_overflow_fails_alone(ask: Any, sampling: dict[str, Any]) -> None:
    """Weights that float16 can't hold: the image makes infinities, and text alone does not."""
    tiny = ADAPTER.tiny()
    with torch.no_grad():
        tiny.model.model.multi_modal_projector.linear_2.weight.mul_(1e5)
    tiny.model.to(torch.float16)
    text = ADAPTER.encode(tiny, [], "w1 w2")
    seen = ADAPTER.encode(tiny, [Image.new("RGB", (40, 30), "red")], "w1 w2")
    requests = [
        request(text, ADAPTER.vision(tiny, text).entries, None, name="text", **sampling),
        request(seen, ADAPTER.vision(tiny, seen).entries, None, name="image", **sampling),
    ]
    engine = Engine(LoadedModel("hf", "tiny", tiny.model, tiny.processor, ModelSpec()), slots=2)
    with engine.serving() as slots:
        events = slots.admit(requests[0])
        with pytest.raises(NotFinite) as caught:
            slots.admit(requests[1])
        while slots.active:
            events += slots.step()
    assert "token 1 are not finite in float16" in str(caught.value.cause)
    assert str(caught.value.hint).endswith("--dtype bfloat16")
    assert isinstance(events[-1], Finished) and events[-1].request == "text"
