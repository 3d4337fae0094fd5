"""Latent attention in absorbed form computes what the expanded form does, and expands nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from mvw_kimi_vl.model import KimiVL
from mvw_kimi_vl.modeling import absorbed
from torch import nn

from mvw_cli import LoadedModel
from mvw_cli.adapter import unchanged
from mvw_cli.oracle.equivalence import Trial, noise, question_of, run


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return KimiVL().tiny()


def answers(loaded: LoadedModel, kernel: str) -> list[Trial]:
    plan = [((60, 40), 2, 12), ((30, 90), None, 9), ((28, 28), 5, 12), ((90, 30), 1, 7)]
    requests = [
        question_of(KimiVL(), loaded, [noise(*size)], m=m, name=str(number), new_tokens=length)
        for number, (size, m, length) in enumerate(plan)
    ]
    trials, _ = run(loaded, requests, slots=3, attention=kernel)
    return sorted(trials, key=lambda trial: trial.events[0].request)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_it_equals_the_expanded_form(loaded: LoadedModel, kernel: str) -> None:
    """Over slots of different lengths, before and after withdrawal."""
    assert loaded.serving is absorbed
    folded = answers(loaded, kernel)
    expanded = answers(replace(loaded, serving=unchanged), kernel)
    for one, other in zip(folded, expanded, strict=True):
        assert one.token_ids == other.token_ids
        assert (one.logits - other.logits).abs().max() < 1e-4
        assert not torch.equal(one.logits, other.logits)  # they are two computations


def test_a_step_expands_nothing(loaded: LoadedModel) -> None:
    """Counted at `kv_b_proj`: once a layer for each prefill, and never for a step."""
    calls: list[int] = []

    def count(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls.append(args[0].shape[-2])

    layers = loaded.model.get_decoder().layers
    handles = [layer.self_attn.kv_b_proj.register_forward_hook(count) for layer in layers]
    try:
        request = question_of(KimiVL(), loaded, [noise(28, 28)], m=3)
        run(loaded, [request])
    finally:
        for handle in handles:
            handle.remove()
    assert calls == [request.inputs["input_ids"].shape[1]] * len(layers)


def test_the_model_is_restored(loaded: LoadedModel) -> None:
    attention = loaded.model.get_decoder().layers[0].self_attn
    with pytest.raises(OSError, match="gone"), absorbed(loaded.model):
        assert "forward" in vars(attention)
        raise OSError("gone")
    assert "forward" not in vars(attention)
    assert attention.num_key_value_groups == 1
