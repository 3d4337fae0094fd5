"""All layers' withdrawals in one pass: each equal to a forward pass of its own with masks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from families import BY_NAME, FAMILIES, STUCK, build
from oracle_weights import logits_withdrawn_at

from mvw_cli.calibrate.branches import branch_logits, judge_layers
from mvw_cli.engine.types import NotExact

ANSWER = [5, 17]
OTHERS = (*STUCK, "llama4")
"""Those that are left to the slower way: `tests/engine/test_hybrid.py`."""
CASES = [
    *((one.name, "skip") for one in FAMILIES if one.name not in OTHERS),
    ("mllama", "mlp"),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_each_branch_is_a_pass_of_its_own(name: str, kind: Any) -> None:
    family = BY_NAME[name]
    model = build(family)
    text = model.config.get_text_config()
    layers = text.num_hidden_layers
    last = max(getattr(text, "cross_attention_layers", None) or range(layers))
    for seed in (0, 1):
        inputs = family.prompt(seed)
        layout = family.layout(inputs)
        *branches, full = judge_layers(
            model, inputs, layout, lambda branch, full: branch, ANSWER, cross_attention=kind
        )
        whole = logits_withdrawn_at(model, inputs, layout, layers, ANSWER)
        torch.testing.assert_close(full, whole, rtol=0, atol=2e-5)
        assert len(branches) == layers
        for layer, logits in enumerate(branches):
            expected = logits_withdrawn_at(
                model, inputs, layout, layer, ANSWER, cross_attention=kind
            )
            torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)
            # Otherwise a branch that sees everything would pass as well.
            assert (expected - whole).abs().max() > 1e-3 or layer > last


def family_named(name: str) -> tuple[Any, dict[str, Any], Any]:
    family = BY_NAME[name]
    inputs = family.prompt(0)
    return build(family), inputs, family.layout(inputs)


def hooks_of(model: Any) -> int:
    return sum(
        len(layer._forward_hooks) + len(layer._forward_pre_hooks)
        for layer in model.get_decoder().layers
    )


def test_the_model_is_as_it_was() -> None:
    model, inputs, layout = family_named("qwen2_5_vl")
    with torch.inference_mode():
        before = model(**inputs).logits
    branch_logits(model, inputs, layout, [0, 1, 2])
    assert hooks_of(model) == 0
    with torch.inference_mode():
        assert torch.equal(model(**inputs).logits, before)


def test_what_a_model_does_between_its_layers_is_noticed() -> None:
    """Branches would miss it: whoever calls has to go the slow way."""
    model, inputs, layout = family_named("llava")

    class Louder(torch.nn.Module):
        """A layer list's entry that changes the rows before the layer's own hooks see them."""

        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, hidden: Any, **kwargs: Any) -> Any:
            return self.layer(hidden * 1.5, **kwargs)

    layers = model.get_decoder().layers
    inner = layers[1]
    with pytest.raises(NotExact, match="layer 2 reads"):
        hook = layers[2].register_forward_pre_hook(lambda layer, args: (args[0] * 1.5, *args[1:]))
        try:
            branch_logits(model, inputs, layout, [1])
        finally:
            hook.remove()
    # What is done inside a layer is a layer's own, and every branch gets it.
    layers[1] = Louder(inner)
    found = branch_logits(model, inputs, layout, [1])
    expected = logits_withdrawn_at(model, inputs, layout, 1, [0])
    torch.testing.assert_close(found[1], expected, rtol=0, atol=2e-5)
    assert hooks_of(model) == 0


def test_a_prompt_that_ends_with_vision_is_refused() -> None:
    model, inputs, layout = family_named("llava")
    end = int(layout.entries.nonzero()[-1]) + 1
    cut = {
        name: value[:, :end] if name != "pixel_values" else value for name, value in inputs.items()
    }
    with pytest.raises(NotExact, match="ends with a vision token"):
        branch_logits(model, cut, type(layout)(layout.entries[:end]), [1])


def test_branches_go_in_groups_no_larger_than_the_prompt() -> None:
    """No call of a layer reads more rows than the full run's."""
    model, inputs, layout = family_named("llava")
    length = inputs["input_ids"].shape[1]
    shapes = []

    def seen(plain: Any, hidden: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(hidden.shape[:2]))
        return plain(hidden, **kwargs)

    for layer in model.get_decoder().layers:
        layer.forward = partial(seen, layer.forward)
    branch_logits(model, inputs, layout, [0, 1, 2])
    text = length - 16
    # Layer 0 with one branch, layer 1 with two, layer 2 with three, as far as they fit.
    together = length // text
    assert together >= 2
    assert shapes[0] == (1, length) and (1, text) in shapes and (2, text) in shapes
    assert max(rows * columns for rows, columns in shapes) <= length
