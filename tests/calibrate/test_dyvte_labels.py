"""What DyVTE's gates learn from: features and losses against passes with explicit masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import BY_NAME, build
from oracle_weights import logits_withdrawn_at
from torch.nn import functional

from mvw_cli.calibrate.dyvte.labels import GateExample, label_question, labels

ANSWER = [5, 17, 8, 42, 9, 33]
NAMES = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "kimi_text_stack", "mllama")


def expected(name: str, seed: int, kind: Any) -> GateExample:
    """The same as `label_question`, one plain pass per exit, and features of the prompt alone."""
    one = BY_NAME[name]
    model = build(one)
    inputs = one.prompt(seed)
    layout = one.layout(inputs)
    entries, layers = layout.entries, len(model.get_decoder().layers)
    target = torch.tensor(ANSWER)
    *exits, full = [
        logits_withdrawn_at(model, inputs, layout, layer, ANSWER, cross_attention=kind)
        for layer in range(1, layers + 1)
    ]
    agreement = [(one.argmax(-1) == full.argmax(-1)).float().mean() for one in exits]
    loss = [functional.cross_entropy(one, target) for one in exits]
    with torch.inference_mode():
        states = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states
    end = int(entries.nonzero()[-1]) + 1 if entries.any() else 0
    after = [place for place in range(end, len(entries)) if not entries[place]]
    read = [
        torch.cat([state[0, after[:-1]].mean(0), state[0, after[-1]]]) for state in states[1:layers]
    ]
    return GateExample(
        torch.stack(read),
        torch.stack(agreement),
        torch.stack(loss),
        float(functional.cross_entropy(full, target)),
    )


@pytest.mark.parametrize(("name", "keep"), [*((name, "skip") for name in NAMES), ("mllama", "mlp")])
def test_features_agreement_and_loss_equal_passes_with_explicit_masks(name: str, keep: Any) -> None:
    one = BY_NAME[name]
    model = build(one)
    for seed in (0, 1):
        inputs = one.prompt(seed)
        found = label_question(model, inputs, one.layout(inputs), ANSWER, cross_attention=keep)
        wanted = expected(name, seed, keep)
        torch.testing.assert_close(found.features, wanted.features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.agreement, wanted.agreement)
        torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-4, atol=1e-5)
        assert found.full_loss == pytest.approx(wanted.full_loss, rel=1e-4)
        # Withdrawal changes something, or this test could not fail.
        assert float((found.loss - found.full_loss).abs().max()) > 1e-2
    for layer in model.get_decoder().layers:
        assert not layer._forward_pre_hooks and not layer._forward_hooks


def test_labels_follow_the_published_rule() -> None:
    agreement = torch.tensor([1.0, 1.0, 0.99, 0.995, 1.0])
    loss = torch.tensor([1.0, 1.0301, 1.0, 1.029, 0.5])
    assert labels(agreement, loss, 1.0).tolist() == [1, 0, 0, 1, 1]
    assert labels(agreement, loss, 1.0, min_agreement=0.9).tolist() == [1, 0, 1, 1, 1]
    assert labels(agreement, loss, 1.0, loss_ratio=1.1).tolist() == [1, 1, 0, 1, 1]
    assert labels(torch.ones(1), torch.zeros(1), 0.0).tolist() == [1]
