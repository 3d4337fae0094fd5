"""The search for VTW's layer: one pass equals a prefill for each, and the rule is as published."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sessions import family
from torch.nn import functional

from mvw_cli.calibrate import branches
from mvw_cli.calibrate.vtw import (
    choose_layer,
    curve,
    divergence,
    layer_by_layer,
    layer_divergences,
)
from mvw_cli.engine.types import NotExact


def test_divergence_is_that_of_the_reference() -> None:
    """`KLDivLoss(log p, p_K)`: arguments as the reference gives them."""
    branch, full = (
        torch.randn(3, 50, generator=torch.Generator().manual_seed(0)),
        torch.randn(3, 50),
    )
    loss = torch.nn.KLDivLoss(reduction="batchmean")
    expected = loss(functional.log_softmax(full, -1), functional.softmax(branch, -1))
    assert divergence(branch, full) == pytest.approx(float(expected), rel=1e-5)
    assert divergence(branch, branch) == 0
    # What a branch rules out counts for nothing.
    ruled_out = torch.tensor([[0.0, -torch.inf]])
    assert divergence(ruled_out, torch.zeros(1, 2)) == pytest.approx(0.6931, abs=1e-4)
    assert divergence(branch, full) != pytest.approx(divergence(full, branch), rel=1e-2)


NAMES = ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "kimi_text_stack", "mllama"]


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_one_pass_equals_a_prefill_for_each_layer(name: str, tokens: int) -> None:
    session, request = family(name)
    answer: tuple[int, ...] = ()
    if tokens > 1:
        settings = replace(request.settings, max_new_tokens=tokens)
        *_, last = session.run([replace(request, settings=settings)])
        answer = last.token_ids  # type: ignore[union-attr]
    found, remark = layer_divergences(session, request, answer)
    slower = layer_by_layer(session, request, answer)
    assert remark is None
    assert len(found) == len(slower) == len(session.loaded.model.get_decoder().layers)
    assert slower[0] is None and found[0] is not None
    assert found[1:] == pytest.approx(slower[1:], rel=1e-3, abs=1e-6)
    assert max(value for value in found if value is not None) > 1e-3


@pytest.mark.parametrize("cross_attention", ["skip", "mlp"])
def test_mllama_between_its_cross_attention_layers(cross_attention: Any) -> None:
    session, request = family("mllama", cross_attention=cross_attention)
    found, _ = layer_divergences(session, request)
    assert found[0] == found[1]  # layer 1 is the first that sees anything
    assert found[2] == found[3]
    assert found[1] != found[2]
    assert found[1:] == pytest.approx(layer_by_layer(session, request)[1:], rel=1e-3, abs=1e-6)


def test_many_logits_go_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    session, request = family("llava")
    at_once = layer_divergences(session, request, [5, 17, 8, 42])
    calls = []
    plain = branches.branch_logits

    def counted(*args: Any, **more: Any) -> Any:
        calls.append(args[3])
        return plain(*args, **more)

    monkeypatch.setattr(branches, "branch_logits", counted)
    monkeypatch.setattr(branches, "LOGIT_BYTES", 4 * 4 * 100 * 2)  # of the full run and one branch
    grouped = layer_divergences(session, request, [5, 17, 8, 42])
    assert calls == [[0], [1], [2]]
    assert grouped[0] == pytest.approx(at_once[0], rel=1e-4, abs=1e-7)


def test_a_model_that_branches_would_miss_goes_layer_by_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, request = family("llava")
    expected, _ = layer_divergences(session, request)

    def refuse(*args: Any, **more: Any) -> Any:
        raise NotExact("it does things between its layers")

    monkeypatch.setattr(branches, "branch_logits", refuse)
    found, remark = layer_divergences(session, request)
    assert found[0] is None and remark == "it does things between its layers"
    assert found[1:] == pytest.approx(expected[1:], rel=1e-3, abs=1e-6)


# -- the rule ---------------------------------------------------------------------------------


def points(*means: float) -> list[dict[str, Any]]:
    return [
        {"layer": layer, "kl_nats": mean, "interval_95": None} for layer, mean in enumerate(means)
    ]


def test_the_first_layer_whose_mean_is_at_most_eta() -> None:
    layer, reason, remarks = choose_layer(points(3.0, 0.2, 0.003, 0.001), 0.003, 1)
    assert (layer, remarks) == (2, [])
    assert "Layer 2 is the first from 1 on" in reason


def test_layers_before_the_first_do_not_count() -> None:
    assert choose_layer(points(3.0, 0.001, 0.2, 0.001), 0.003, 2)[0] == 3


def test_no_layer_qualifies() -> None:
    layer, reason, _ = choose_layer(points(3.0, 0.2, 0.1, 0.15), 0.003, 1)
    assert layer is None and "before layer 2" in reason


def test_what_speaks_against_a_layer_is_told() -> None:
    layer, _, remarks = choose_layer(points(3.0, 0.001, 0.2, 0.001), 0.003, 1)
    assert layer == 1 and "--min-layer 3" in remarks[0]  # it rises again
    layer, _, remarks = choose_layer(points(0.002, 0.001, 0.001), 0.003, 1)
    assert layer == 1 and "hardly need the image" in remarks[0]


def test_the_interval_is_one_of_the_mean() -> None:
    samples: list[list[float | None]] = [[None, float(value)] for value in range(40)]
    [point] = curve(samples)
    assert (point["layer"], point["kl_nats"]) == (1, 19.5)
    low, high = point["interval_95"]
    # 1.96 standard errors of the mean of 0 … 39 are 3.6.
    assert low == pytest.approx(19.5 - 3.6, abs=0.5) and high == pytest.approx(19.5 + 3.6, abs=0.5)
    assert curve(samples[:9])[0]["interval_95"] is None
    assert choose_layer([{**point, "kl_nats": 16.0}], 17.0, 1)[2]
