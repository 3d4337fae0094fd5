"""The share of the attention on vision tokens is that of eager attention, whatever serves."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from families import FAMILIES, STUCK
from sessions import answered, asked, eager_weights, family, opened, tiny
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mvw_cli.adapter import unchanged
from mvw_cli.bench.quality import attention
from mvw_cli.bench.quality.attention import attention_mass, spread
from mvw_cli.engine.types import Request
from mvw_cli.oracle.masked import extended
from mvw_cli.plugins import load_adapter
from mvw_cli.session import Session

OUTPUT = tuple(torch.randint(5, 60, (14,), generator=torch.Generator().manual_seed(3)).tolist())
TOLERANCE = 1e-5
IN_SEQUENCE = [one.name for one in FAMILIES if one.name not in ("mllama", *STUCK)]


def by_transformers(session: Session, request: Request) -> torch.Tensor:
    """The share of the attention on vision in one eager pass over all: # (layers, T)."""
    return eager_weights(session, request, OUTPUT).sum(-1)


def check(session: Session, request: Request) -> None:
    found = attention_mass(session, replace(request, forced=OUTPUT))
    expected = by_transformers(session, request)
    assert found.measure == "attention"
    assert found.layers == list(range(len(expected)))
    assert (torch.tensor(found.by_layer) - expected).abs().max() < TOLERANCE
    assert (torch.tensor(found.mass) - expected.mean(0)).abs().max() < TOLERANCE
    assert expected.std() > 100 * TOLERANCE  # else a mistake would not show


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", IN_SEQUENCE)
def test_it_is_that_of_eager_attention(name: str, kernel: str) -> None:
    """With grouped queries, M-RoPE, sliding windows and latent attention, expanded."""
    check(*family(name, attention=kernel))


@pytest.mark.parametrize("serving", ["absorbed", "expanded"])
def test_it_is_the_same_in_latent_attention_absorbed_or_expanded(serving: str) -> None:
    session = tiny("kimi-vl")
    if serving == "expanded":
        loaded = replace(session.loaded, serving=unchanged)
        session = opened(load_adapter("kimi-vl"), loaded)
    check(session, asked(session))


def test_a_sliding_layer_counts_what_it_still_sees() -> None:
    """Windows of 12: the vision tokens slide out of two layers of three."""
    session, request = family("gemma3")
    entries, prompt = request.layout.entries, request.inputs["input_ids"].shape[1]
    found = attention_mass(session, replace(request, forced=OUTPUT))
    for read, uniform in enumerate(found.vision_share_of_entries):
        length = prompt + read
        start = max(0, length - 12)
        inside = int(entries[start:].sum())
        expected = (2 * inside / (length - start) + int(entries.sum()) / length) / 3
        assert uniform == pytest.approx(expected)
    assert found.by_layer[0][-1] == 0 and found.by_layer[1][-1] > 0


@torch.inference_mode()
def test_cross_attention_tells_what_it_adds_to_the_stream() -> None:
    session, request = family("mllama")
    found = attention_mass(session, replace(request, forced=OUTPUT))
    model, ins, outs = session.loaded.model, {}, {}
    handles = []
    for number in (1, 3):

        def hook(layer: Any, args: Any, kwargs: Any, output: Any, number: int = number) -> None:
            ins[number] = args[0] if args else kwargs["hidden_states"]
            outs[number] = output

        layer = model.get_decoder().layers[number]
        handles.append(layer.register_forward_hook(hook, with_kwargs=True))
    model(**extended(model, request.inputs, OUTPUT), use_cache=False)
    for handle in handles:
        handle.remove()
    first = request.inputs["input_ids"].shape[1] - 1
    assert (found.measure, found.layers, found.vision_share_of_entries) == (
        "cross-attention",
        [1, 3],
        [],
    )
    for told, number in zip(found.by_layer, (1, 3), strict=True):
        stream = ins[number][0, first : first + len(OUTPUT)]
        added = (outs[number][0, first : first + len(OUTPUT)] - stream).norm(dim=-1)
        expected = added / (stream.norm(dim=-1) + added)
        assert (torch.tensor(told) - expected).abs().max() < TOLERANCE
        assert 0.05 < expected.min() < expected.max() < 0.95
    hooks = [layer._forward_hooks for layer in model.get_decoder().layers]
    assert not any(hooks)


def test_it_changes_nothing_and_takes_itself_off() -> None:
    session = tiny("hf")
    request = asked(session)
    alone = answered(session, request)
    before = dict(ALL_ATTENTION_FUNCTIONS)
    found = attention_mass(session, request)
    assert len(found.mass) == len(alone)
    assert dict(ALL_ATTENTION_FUNCTIONS) == before
    assert answered(session, request) == alone


def test_the_kernel_goes_on_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    """SDPA is called for each layer and token, and the eager function never."""
    session, request = family("llava")
    calls = 0
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return sdpa(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    attention_mass(session, replace(request, forced=OUTPUT))
    towers = 2 * session.loaded.model.config.vision_config.num_hidden_layers
    assert 3 * len(OUTPUT) <= calls <= 3 * len(OUTPUT) + towers


def test_layers_are_spread_evenly() -> None:
    assert spread(range(5)) == [0, 1, 2, 3, 4]
    assert spread(range(12)) == list(range(12))
    chosen = spread(range(40))
    assert (len(chosen), chosen[0], chosen[-1]) == (12, 0, 39)
    gaps = {later - sooner for sooner, later in pairwise(chosen)}
    assert gaps <= {3, 4}
    assert spread([3, 8, 13], most=2) == [3, 13]


def test_of_many_layers_the_chosen_alone_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    session, request = family("llava")
    all_of_them = attention_mass(session, replace(request, forced=OUTPUT))
    monkeypatch.setattr(attention, "spread", lambda layers: layers[2:])
    last = attention_mass(session, replace(request, forced=OUTPUT))
    assert last.layers == [2]
    assert last.by_layer == [all_of_them.by_layer[2]] and last.mass == last.by_layer[0]


def test_a_request_without_vision_is_refused() -> None:
    session = tiny("hf")
    with pytest.raises(ValueError, match="no vision tokens"):
        attention_mass(session, session.request([], "w1 w2"))
