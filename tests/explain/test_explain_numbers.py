"""What the page says of the attention is what eager attention gives, for the same tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from explaining import data_of, explained, run_recorded, weights_of
from families import FAMILIES, STUCK
from oracle_weights import attention_weights
from sessions import answered, asked, at, eager_weights, family, tiny
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mvw_cli.engine.types import Request
from mvw_cli.explain.page import page
from mvw_cli.explain.record import layer_attention
from mvw_cli.policies.fastv import FastV
from mvw_cli.policies.pulse import Pulse
from mvw_cli.policies.vtw import Vtw
from mvw_cli.policy import Decide, Select, StepView, Withdraw, WithdrawalPolicy
from mvw_cli.session import Session

IN_SEQUENCE = [one.name for one in FAMILIES if one.name not in ("mllama", *STUCK)]
M = 4
TOLERANCE = 2e-4
"""Weights are kept in 16 bits, and summed in them."""


def shown(session: Session, request: Request, policy: WithdrawalPolicy) -> dict[str, Any]:
    """The data of a page about a run, whose tokens are those of the run without it."""
    alone = answered(session, replace(request, policy=policy))
    record, events, output = run_recorded(session, request, policy)
    assert output == alone
    data = data_of(page(explained(record, events)))
    assert [token["id"] for token in data["tokens"]] == list(output)
    return data


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", IN_SEQUENCE)
def test_the_page_tells_what_eager_attention_gives(name: str, kernel: str) -> None:
    """With M-RoPE, sliding windows and latent attention; up to the withdrawal, and none after."""
    session, request = family(name, attention=kernel)
    data = shown(session, request, at(M))
    output = tuple(token["id"] for token in data["tokens"])
    expected = eager_weights(session, request, output)
    assert data["layers"] == data["layers_in_page"] == list(range(len(expected)))
    assert data["measure"] == "attention"
    for token in range(M):
        told = data["tokens"][token]
        assert told["mass"] == pytest.approx(
            float(expected[:, token].sum(-1).mean()), abs=TOLERANCE
        )
        whole = weights_of(data, token)
        assert whole is not None
        assert (whole - expected[:, token].mean(0)).abs().max() < TOLERANCE
        for layer in data["layers"]:
            one = weights_of(data, token, layer)
            assert one is not None
            assert (one - expected[layer, token]).abs().max() < TOLERANCE
            mass = told["mass_by_layer"][layer] or 0.0  # a window may have left the vision behind
            assert mass == pytest.approx(float(expected[layer, token].sum()), abs=TOLERANCE)
    assert float(expected[:, :M].std()) > 5 * TOLERANCE  # else a mistake would not show
    for told in data["tokens"][M:]:
        assert told["mass"] is told["row"] is None
        assert told["mass_by_layer"] == [None] * len(expected)


@pytest.mark.parametrize("m", [M, None])
@pytest.mark.parametrize("name", ["kimi-vl", "llava-cot", "shapes", "hf"])
def test_the_adapters_own_models(name: str, m: int | None) -> None:
    """Latent attention absorbed, and cross-attention on tiles."""
    session = tiny(name)
    request = asked(session)
    data = shown(session, request, at(m))
    output = [token["id"] for token in data["tokens"]]
    end = len(output) if m is None else m
    prompt = request.inputs["input_ids"].shape[1]
    rows = range(prompt - 1, prompt - 1 + end)
    expected = attention_weights(
        session.loaded.model, request.inputs, output, request.layout, {}, data["layers"], rows
    )
    assert data["measure"] == ("cross-attention" if name == "llava-cot" else "attention")
    for token in range(end):
        for layer in data["layers"]:
            one = weights_of(data, token, layer)
            assert one is not None
            assert (one - expected[layer][token]).abs().max() < TOLERANCE
    assert all((token["mass"] is None) == (token["step"] > end) for token in data["tokens"])
    assert len({token["mass"] for token in data["tokens"]}) > 2


@dataclass(frozen=True)
class Thin(WithdrawalPolicy):
    """After 3 tokens the first layer keeps every second vision token, and the last none."""

    name: ClassVar[str] = "thin"

    def begin(self) -> Decide:
        def decide(view: StepView) -> Withdraw | None:
            if view.step != 3:
                return None
            return Withdraw(keep={0: kept(view.vision_tokens), view.layers[-1]: torch.zeros(
                view.vision_tokens, dtype=torch.bool)})  # fmt: skip

        return decide


def kept(tokens: int) -> torch.Tensor:
    return torch.arange(tokens) % 2 == 0


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_what_each_layer_has_left_counts(name: str) -> None:
    session, request = family(name)
    data = shown(session, request, Thin())
    output = [token["id"] for token in data["tokens"]]
    prompt, count = request.inputs["input_ids"].shape[1], request.layout.vision_tokens
    last, late = data["layers"][-1], prompt - 1 + 3
    first = torch.zeros(prompt + len(output), count, dtype=torch.bool)
    first[late:] = ~kept(count)
    none = torch.zeros_like(first)
    none[late:] = True
    expected = attention_weights(
        *(session.loaded.model, request.inputs, output, request.layout),
        {0: first, last: none},
        data["layers"],
        range(prompt - 1, prompt - 1 + len(output)),
    )
    for token in range(len(output)):
        for layer in data["layers"]:
            one = weights_of(data, token, layer)
            assert one is not None
            assert (one - expected[layer][token]).abs().max() < TOLERANCE
    later = data["tokens"][5]
    assert later["mass_by_layer"][last] is None
    mean = sum(float(expected[layer][5].sum()) for layer in data["layers"]) / len(data["layers"])
    assert later["mass"] == pytest.approx(mean, abs=TOLERANCE)


@pytest.mark.parametrize("policy", [Vtw(layer=2), FastV(layer=1, keep=0.5)])
def test_vision_that_left_in_the_prefill(policy: WithdrawalPolicy) -> None:
    """The first token tells it, too: it comes out of the prefill."""
    session, request = family("llava")
    data = shown(session, request, policy)
    if policy.name == "vtw":
        assert data["layers"] == [0, 1]  # what holds vision after the prefill
        return
    assert data["layers"] == [0, 1, 2]
    count = request.layout.vision_tokens
    for token in range(len(data["tokens"])):
        seen = [int((weights_of(data, token, layer) != 0).sum()) for layer in (0, 1, 2)]  # type: ignore[operator, union-attr]
        assert seen == [count, count // 2, count // 2]


def test_a_long_run_keeps_fewer_layers_in_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    session, request = family("llava")
    record, events, output = run_recorded(session, request)
    row = 2 * len(output) * request.layout.vision_tokens
    monkeypatch.setattr("mvw_cli.explain.document.MOST_BYTES", 3 * row)
    written = page(explained(record, events))
    data = data_of(written)
    assert (data["layers"], data["layers_in_page"]) == ([0, 1, 2], [0, 2])
    assert "leaves out those of 1 watched layers" in written
    assert all(len(token["mass_by_layer"]) == 3 for token in data["tokens"])
    assert weights_of(data, 2, 2) is not None


def test_the_model_is_as_it_was() -> None:
    session = tiny("llava-cot")
    request = asked(session, M)
    before = dict(ALL_ATTENTION_FUNCTIONS)
    alone = answered(session, request)
    record, _, _ = run_recorded(session, request)
    assert len(record.layers) > 1 and record.mass_layers == record.layers
    assert dict(ALL_ATTENTION_FUNCTIONS) == before
    hooks = [layer._forward_hooks for layer in session.loaded.model.get_decoder().layers]
    assert not any(hooks)
    assert answered(session, request) == alone


def test_the_last_token_is_told_of_whatever_ends_the_answer() -> None:
    session, request = family("llava")
    record, _, output = run_recorded(session, request)
    assert len(record.steps) == len(output)
    stop = replace(request, settings=replace(request.settings, ignore_eos=False))
    session.loaded.model.generation_config.eos_token_id = output[2]
    record, _, short = run_recorded(session, stop)
    assert len(record.steps) == len(short) == output.index(output[2]) + 1
    assert record.steps[-1].mass is not None


def test_tiny_weights_on_many_tokens_are_kept() -> None:
    """16,384 tokens share a thousandth: each gets less than 16 bits can tell from nothing."""
    weights = torch.rand(16_384, generator=torch.Generator().manual_seed(0))
    weights *= 1e-3 / weights.sum()
    kept = layer_attention(weights)
    assert kept.mass == pytest.approx(1e-3, rel=1e-5)
    assert ((kept.weights() - weights).abs() / weights.max()).max() < 1e-3


def test_what_a_policy_lets_the_later_layers_see_is_what_is_told() -> None:
    """Pulse: after its layer, the weights are those among the chosen vision tokens."""
    session, request = family("llava")
    data = shown(session, request, Pulse(layer=0, min_ratio=0.2, max_ratio=0.2))
    count = request.layout.vision_tokens
    for token in range(1, len(data["tokens"])):  # the first comes out of the prefill
        found = [weights_of(data, token, layer) for layer in data["layers"]]
        seen = [int((one != 0).sum()) for one in found if one is not None]
        assert seen[0] == count and 0 < seen[1] == seen[2] <= 3


@dataclass(frozen=True)
class Blind(WithdrawalPolicy):
    """No layer reads any vision."""

    name: ClassVar[str] = "blind"

    def begin_prefill(self) -> Select:
        return lambda view: torch.zeros_like(view.present)


@pytest.mark.parametrize("name", ["llava", "mllama"])
def test_a_run_that_never_sees_the_picture_is_shown_as_such(name: str) -> None:
    session, request = family(name)
    data = shown(session, request, Blind())
    assert data["layers"] == data["layers_in_page"] == [] and data["weights"]["data"] == ""
    assert all(token["mass"] is token["row"] is None for token in data["tokens"])
    record, events, _ = run_recorded(session, request, Blind())
    assert "no vision left. It had no access to the picture." in page(explained(record, events))
