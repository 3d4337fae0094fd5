"""Teacher-forced divergence equals the oracle's, in bounded memory, whatever the family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sessions import answered, asked, at, family, tiny

from mvw_cli.bench.quality.divergence import Divergence, compared, divergences
from mvw_cli.engine.types import Request
from mvw_cli.errors import OutOfMemory
from mvw_cli.oracle.masked import oracle_logits
from mvw_cli.policies.mvw import Mvw
from mvw_cli.session import Session

STEPS = (1, 4, 9)
OUTPUT = tuple(torch.randint(5, 60, (14,), generator=torch.Generator().manual_seed(3)).tolist())
"""Any words will do, and chosen ones repeat themselves in a random model."""
TOLERANCE = 1e-5


def by_the_oracle(
    session: Session, request: Request, m: int | None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL of every token in float64, and whether the argmax agrees: # (T,), (T,)."""
    seen, blind = (
        oracle_logits(
            session.loaded.model,
            request.inputs,
            OUTPUT,
            request.layout.entries,
            step,
            **options,
        ).double()
        for step in (None, m)
    )
    p, q = seen.log_softmax(-1), blind.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1), seen.argmax(-1) == blind.argmax(-1)


def check(found: Divergence, expected: tuple[torch.Tensor, torch.Tensor], m: int) -> None:
    kl, agrees = expected
    assert (torch.tensor(found.kl_nats).double() - kl).abs().max() < TOLERANCE
    assert found.agrees == agrees.tolist()
    assert found.withdrawn_after == m
    assert max(found.kl_nats[:m]) < 1e-6  # until then it has seen what the baseline sees
    assert kl.max() > 100 * TOLERANCE  # else a mistake would not show


def measured(session: Session, request: Request) -> list[Divergence]:
    arms = [replace(request, policy=at(m)) for m in STEPS]
    return divergences(session, request, arms, OUTPUT)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "kimi_text_stack"])
def test_it_is_the_oracles(name: str, kernel: str) -> None:
    session, request = family(name, attention=kernel)
    found = measured(session, request)
    for m, divergence in zip(STEPS, found, strict=True):
        check(divergence, by_the_oracle(session, request, m), m)


@pytest.mark.parametrize("cross_attention", ["skip", "mlp"])
def test_it_is_the_oracles_where_vision_lies_in_cross_attention(cross_attention: Any) -> None:
    session, request = family("mllama", cross_attention=cross_attention)
    found = measured(session, request)
    for m, divergence in zip(STEPS, found, strict=True):
        options = {"cross_attention": cross_attention}
        check(divergence, by_the_oracle(session, request, m, **options), m)


def test_it_is_the_oracles_with_latent_attention_in_absorbed_form() -> None:
    session = tiny("kimi-vl")
    request = asked(session)
    found = measured(session, request)
    for m, divergence in zip(STEPS, found, strict=True):
        check(divergence, by_the_oracle(session, request, m), m)


@pytest.mark.parametrize("adapter", ["hf", "llava-cot", "kimi-vl"])
def test_the_control_without_an_image_is_read_along_the_same_output(adapter: str) -> None:
    session = tiny(adapter)
    request = asked(session)
    blind = session.request([], "w1 w2 red circles")
    [found] = divergences(session, request, [blind], OUTPUT)
    model = session.loaded.model
    nothing = torch.zeros(blind.inputs["input_ids"].shape[1], dtype=torch.bool)
    seen = oracle_logits(model, request.inputs, OUTPUT, request.layout.entries, None)
    without = oracle_logits(model, blind.inputs, OUTPUT, nothing, None)
    p, q = seen.double().log_softmax(-1), without.double().log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1)
    assert (torch.tensor(found.kl_nats).double() - expected).abs().max() < TOLERANCE
    assert found.agrees == (seen.argmax(-1) == without.argmax(-1)).tolist()
    assert found.withdrawn_after is None and max(found.kl_nats) > 100 * TOLERANCE


def test_a_tag_triggers_where_the_output_has_it() -> None:
    session = tiny("hf")
    request = asked(session)
    tokens = answered(session, request)
    words = session.loaded.processor.tokenizer.decode(tokens[:5]).split()
    arms = [replace(request, policy=Mvw(until=words[-1]))]
    first = session.loaded.processor.tokenizer.decode(tokens).split().index(words[-1]) + 1
    assert divergences(session, request, arms, tokens)[0].withdrawn_after == first


def test_the_baseline_does_not_diverge_from_itself() -> None:
    session = tiny("hf")
    request = asked(session)
    [found] = divergences(session, request, [request], answered(session, request))
    assert found.mean_kl_nats < 1e-6 and all(found.agrees)


def test_what_is_ruled_out_counts_for_nothing() -> None:
    out = -torch.inf
    kl, agrees = compared(
        torch.tensor([0.0, out, 0.0]), torch.tensor([0.0, 9.0, 0.0]), torch.tensor([0.0, out, 0.0])
    )
    # Half and half against two parts of 2 + e^9: KL = log((2 + e^9) / 2).
    assert kl.tolist() == pytest.approx([torch.log((2 + torch.tensor(9.0).exp()) / 2).item(), 0])
    assert agrees.tolist() == [False, True]


def test_rows_of_one_step_are_held_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the output: the rows that are alive are one for each request."""
    import weakref

    session = tiny("hf")
    request = asked(session)
    alive: set[int] = set()
    most = 0
    clone = torch.Tensor.clone

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal most
        made = clone(tensor, *args, **kwargs)
        if made.shape == (session.loaded.model.config.text_config.vocab_size,):
            number = id(made)
            alive.add(number)
            weakref.finalize(made, alive.discard, number)
            most = max(most, len(alive))
        return made

    monkeypatch.setattr(torch.Tensor, "clone", counted)
    divergences(session, request, [replace(request, policy=at(3))], OUTPUT * 5)
    assert most == 2


def test_arms_that_do_not_fit_together_are_read_in_smaller_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mvw_cli.engine.slots import Slots

    session = tiny("hf")
    request = asked(session)
    together = measured(session, request)
    admit, room = Slots.admit, 2

    def short_of_memory(slots: Slots, one: Request) -> Any:
        if len(slots.active) == room:
            raise torch.OutOfMemoryError("planted")
        return admit(slots, one)

    monkeypatch.setattr(Slots, "admit", short_of_memory)
    arms = [replace(request, policy=at(m)) for m in STEPS]
    apart = divergences(session, request, arms, OUTPUT)
    assert [one.agrees for one in apart] == [one.agrees for one in together]
    for one, other in zip(apart, together, strict=True):
        assert one.kl_nats == pytest.approx(other.kl_nats, abs=1e-5)
    room = 1
    with pytest.raises(OutOfMemory):
        divergences(session, request, arms, OUTPUT)


def test_whoever_ticks_may_end_it_and_the_model_is_restored() -> None:
    session = tiny("hf")
    request = asked(session)
    before = session.loaded.model.config.get_text_config()._attn_implementation
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        divergences(session, request, [request], [5] * 20, tick=tick)
    assert ticks == 5
    assert session.loaded.model.config.get_text_config()._attn_implementation == before
