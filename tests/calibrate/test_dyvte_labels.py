"""What DyVTE's gates learn from: features and losses against passes with explicit masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from families import FAMILIES, Family, build
from torch import Tensor
from torch.nn import functional

from mvw_cli.calibrate import branches
from mvw_cli.calibrate.dyvte.labels import GateExample, label_question, labels

ANSWER = [5, 17, 8, 42, 9, 33]
NAMES = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "kimi_text_stack", "mllama")


def family(name: str) -> Family:
    return next(one for one in FAMILIES if one.name == name)


@contextmanager
def blind_from(model: Any, exit_layer: int, vision: Tensor, keep_mlp: bool) -> Iterator[None]:
    """Hide the vision columns from every row, from a layer on, by the layers' own masks."""
    cross_layers = getattr(model.config.get_text_config(), "cross_attention_layers", None) or ()
    hooks = []

    def hide(layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        length = hidden.shape[1]
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        columns = functional.pad(vision, (0, length - len(vision)))
        hidden_columns = columns[None, None, None]
        if mask.dtype == torch.bool:
            mask = mask & ~hidden_columns
        else:
            mask = mask.masked_fill(hidden_columns, torch.finfo(mask.dtype).min)
        return args, {**kwargs, "attention_mask": mask}

    def pass_by(layer: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        return args[0] if args else kwargs["hidden_states"]

    def nothing(layer: Any, args: Any, output: Any) -> Any:
        return torch.zeros_like(output[0]), output[1]

    for number, layer in enumerate(model.get_decoder().layers):
        if number < exit_layer:
            continue
        if number in cross_layers:
            if keep_mlp:
                hooks.append(layer.cross_attn.register_forward_hook(nothing))
            else:
                hooks.append(layer.register_forward_hook(pass_by, with_kwargs=True))
        elif not cross_layers:
            hooks.append(layer.register_forward_pre_hook(hide, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def answered(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Logits along the answer, in one plain pass: # (T, V)."""
    ids = inputs["input_ids"]
    longer = dict(inputs)
    tail = torch.tensor([ANSWER])
    longer["input_ids"] = torch.cat([ids, tail], 1)
    for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            filled = torch.full_like(tail, int(name == "attention_mask"), dtype=inputs[name].dtype)
            longer[name] = torch.cat([inputs[name], filled], 1)
    if "cross_attention_mask" in inputs:
        mask = inputs["cross_attention_mask"]
        rows = mask[:, -1:].expand(-1, len(ANSWER), -1, -1)
        longer["cross_attention_mask"] = torch.cat([mask, rows], 1)
    logits = model(**longer, use_cache=False).logits[0]
    return logits[ids.shape[1] - 1 : -1]


def expected(name: str, seed: int, keep_mlp: bool) -> GateExample:
    """The same as `label_question`, one plain pass per exit, and features of the prompt alone."""
    one = family(name)
    model = build(one)
    inputs = one.prompt(seed)
    entries = one.layout(inputs).entries
    layers = len(model.get_decoder().layers)
    target = torch.tensor(ANSWER)
    full = answered(model, inputs)
    agreement, loss = [], []
    for exit_layer in range(1, layers):
        with blind_from(model, exit_layer, entries, keep_mlp):
            logits = answered(model, inputs)
        agreement.append((logits.argmax(-1) == full.argmax(-1)).float().mean())
        loss.append(functional.cross_entropy(logits, target))
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
    one = family(name)
    for seed in (0, 1):
        inputs = one.prompt(seed)
        found = label_question(build(one), inputs, one.layout(inputs), ANSWER, cross_attention=keep)
        wanted = expected(name, seed, keep == "mlp")
        torch.testing.assert_close(found.features, wanted.features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.agreement, wanted.agreement)
        torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-4, atol=1e-5)
        assert found.full_loss == pytest.approx(wanted.full_loss, rel=1e-4)
        # Withdrawal changes something, or this test could not fail.
        assert float((found.loss - found.full_loss).abs().max()) > 1e-2


def test_many_branches_go_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    one = family("llava")
    model, inputs = build(one), one.prompt(0)
    whole = label_question(model, inputs, one.layout(inputs), ANSWER)
    monkeypatch.setattr(branches, "LOGIT_BYTES", 1)
    parts = label_question(model, inputs, one.layout(inputs), ANSWER)
    assert torch.equal(whole.features, parts.features)
    torch.testing.assert_close(whole.loss, parts.loss)


def test_no_hook_stays_on_the_model() -> None:
    one = family("llava")
    model, inputs = build(one), one.prompt(0)
    label_question(model, inputs, one.layout(inputs), ANSWER)
    for layer in model.get_decoder().layers:
        assert not layer._forward_pre_hooks and not layer._forward_hooks


def test_answer_of_one_token() -> None:
    one = family("llava")
    inputs = one.prompt(0)
    found = label_question(build(one), inputs, one.layout(inputs), ANSWER[:1])
    assert set(found.agreement.tolist()) <= {0.0, 1.0}


def test_labels_follow_the_published_rule() -> None:
    agreement = torch.tensor([1.0, 1.0, 0.99, 0.995, 1.0])
    loss = torch.tensor([1.0, 1.0301, 1.0, 1.029, 0.5])
    assert labels(agreement, loss, 1.0).tolist() == [1, 0, 0, 1, 1]
    assert labels(agreement, loss, 1.0, min_agreement=0.9).tolist() == [1, 0, 1, 1, 1]
    assert labels(agreement, loss, 1.0, loss_ratio=1.1).tolist() == [1, 1, 0, 1, 1]
    assert labels(torch.ones(1), torch.zeros(1), 0.0).tolist() == [1]
