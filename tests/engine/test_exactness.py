"""The engine equals the masked-attention oracle, `model.generate` and itself, family by family."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from families import BY_NAME, FAMILIES, Family, build
from running import Run, request, run

from mvw_cli.adapter import VisionLayout
from mvw_cli.oracle.masked import oracle_logits
from mvw_cli.testing.probes import prefilled

TOLERANCE = 1e-5
ROUNDED = {"minicpmv4_6": 2e-5}  # recurrent layers add up what processors round differently
KERNELS = ["sdpa", "eager"]

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@cache
def model_of(family: Family) -> Any:
    return build(family)


def prompt_of(family: Family, seed: int) -> tuple[dict[str, torch.Tensor], VisionLayout]:
    inputs = family.prompt(seed)
    return inputs, family.layout(inputs)


def one(
    family: Family, m: int | None, *, seed: int = 0, kernel: str = "sdpa", **settings: Any
) -> Run:
    inputs, vision = prompt_of(family, seed)
    return run(model_of(family), [request(inputs, vision, m, **settings)], attention=kernel)["a"]


@each_family
@pytest.mark.parametrize(
    ("m", "kernel"), [(1, "sdpa"), (2, "sdpa"), (7, "sdpa"), (2, "eager")], ids=str
)
def test_engine_equals_oracle(family: Family, kernel: str, m: int) -> None:
    inputs, vision = prompt_of(family, 1)
    result = one(family, m, seed=1, kernel=kernel)
    ids = result.completion.token_ids
    expected = oracle_logits(model_of(family), inputs, ids, vision.entries, m)
    assert (result.logits - expected).abs().max() < ROUNDED.get(family.name, TOLERANCE)
    # The oracle itself must tell withdrawal apart: before m nothing changes, after it all does.
    visible = oracle_logits(model_of(family), inputs, ids, vision.entries, None)
    assert torch.equal(expected[:m], visible[:m])
    assert (expected[m:] - visible[m:]).abs().amax(dim=1).min() > 100 * TOLERANCE


@each_family
def test_late_withdrawal_equals_generate(family: Family) -> None:
    inputs, _ = prompt_of(family, 0)
    model = model_of(family)
    generated = model.generate(**inputs, max_new_tokens=20, min_new_tokens=20, do_sample=False)
    expected = generated[0, inputs["input_ids"].shape[1] :].tolist()
    for m in (None, 100):
        result = one(family, m)
        assert list(result.completion.token_ids) == expected
        assert result.completion.withdrawal is None


@each_family
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_slot_equals_three(family: Family, kernel: str) -> None:
    """Five requests, different images, m and lengths, refilling three slots."""
    plan = [(0, 3, 20), (1, None, 6), (2, 1, 13), (3, 8, 20), (4, 2, 17)]
    requests = [
        request(*prompt_of(family, seed), m, name=str(seed), max_new_tokens=length)
        for seed, m, length in plan
    ]
    model = model_of(family)
    alone = {r.id: run(model, [r], attention=kernel)[r.id] for r in requests}
    together = run(model, requests, slots=3, attention=kernel)
    assert together.keys() == alone.keys()
    for name, result in together.items():
        assert result.completion.token_ids == alone[name].completion.token_ids
        assert (result.logits - alone[name].logits).abs().max() < TOLERANCE
        assert result.completion.kv_bytes_end == alone[name].completion.kv_bytes_end


@each_family
def test_kernels_give_the_same_tokens(family: Family) -> None:
    tokens = {one(family, 4, kernel=kernel).completion.token_ids for kernel in KERNELS}
    assert len(tokens) == 1
    assert one(family, 4, kernel="auto").completion.token_ids in tokens


@each_family
def test_withdrawal_frees_exactly_the_vision_entries(family: Family) -> None:
    """As many and as large as transformers' own cache has them; states and all else stay."""
    inputs, vision = prompt_of(family, 0)
    model = model_of(family)
    withdrawn = one(family, 3).completion.withdrawal
    assert withdrawn is not None
    assert withdrawn.step == 3
    assert withdrawn.vision_tokens == vision.vision_tokens > 0
    across = getattr(model.config.get_text_config(), "cross_attention_layers", None) or []
    before = freed = entries = 0
    for number, layer in enumerate(prefilled(model, inputs).layers):
        if getattr(layer, "keys", None) is None:
            tables = (getattr(layer, "conv_states", {}), getattr(layer, "recurrent_states", {}))
            before += sum(
                one.nbytes for table in tables for one in table.values() if one is not None
            )
            continue
        length = layer.keys.shape[2]  # a sliding layer has let go of the start of the prompt
        entry = (layer.keys.nbytes + layer.values.nbytes) // length
        if number in across:
            gone = vision.vision_tokens
            before += gone * entry
        else:
            gone = int(vision.entries[-length:].sum())
            before += (length + 2) * entry
        freed += gone * entry
        entries += gone
    assert (withdrawn.entries, withdrawn.kv_bytes_before) == (entries, before)
    assert withdrawn.kv_bytes_before - withdrawn.kv_bytes_after == freed > 0


def test_sliding_layers_see_by_position_not_by_place() -> None:
    """Withdrawal shortens the buffer; the window must go on counting positions."""
    gemma = BY_NAME["gemma3"]
    inputs, vision = prompt_of(gemma, 0)
    window = model_of(gemma).config.text_config.sliding_window
    result = one(gemma, 2, max_new_tokens=3 * window)
    expected = oracle_logits(
        model_of(gemma), inputs, result.completion.token_ids, vision.entries, 2
    )
    assert (result.logits - expected).abs().max() < TOLERANCE


@each_family
def test_model_is_restored_after_an_error(family: Family) -> None:
    model = model_of(family)
    before = {
        name: module.config._attn_implementation
        for name, module in model.named_modules()
        if hasattr(module, "config")
    }

    def failing_requests():
        yield request(*prompt_of(family, 0), 2)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        run(model, failing_requests(), slots=2)
    after = {
        name: module.config._attn_implementation
        for name, module in model.named_modules()
        if hasattr(module, "config")
    }
    assert after == before
    assert all("mvw" not in kernel for kernel in after.values())
