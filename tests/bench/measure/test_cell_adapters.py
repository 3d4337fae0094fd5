"""The measurement on each adapter's own model: GQA, MLA with its faster step, cross-attention."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planted import arm_spec, job
from sessions import tiny

from mvw_cli.bench.bounds import with_bounds
from mvw_cli.bench.measure.cell import measure, workload
from mvw_cli.cost.case import Case
from mvw_cli.cost.flops import flops_of
from mvw_cli.plugins import load_adapter
from mvw_cli.session import open_session


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("adapter", ["shapes", "hf", "kimi-vl", "llava-cot"])
def test_kv_bytes_agree_with_the_configuration_and_the_vision_encoder_is_seen(
    adapter: str, tmp_path: Path
) -> None:
    session, whole = tiny(adapter), job(tmp_path, runs=1, batch=2, new_tokens=6)
    cell = measure(session, whole)
    assert cell is not None
    for arm in cell.arms:
        kept = arm.memory
        assert kept.kv_bytes_before == kept.kv_formula_bytes_before
        assert kept.kv_bytes_after == kept.kv_formula_bytes_after
        assert (kept.kv_bytes_after < kept.kv_bytes_before) == (arm.name == "m=4")
        vision = arm.phases.vision_ms
        assert vision is not None and arm.phases.prefill_ms is not None
        assert 0 < vision.median < arm.phases.prefill_ms.median
    assert workload(session, whole, "given").vision_tokens > 0


def test_random_weights_are_measured_at_the_true_shape(tmp_path: Path) -> None:
    whole = job(tmp_path, runs=1, new_tokens=6)
    random, read = (
        measure(open_session(whole.profile, random_weights=made), whole) for made in (True, False)
    )
    assert random is not None and read is not None
    ours, theirs = random.arms[1], read.arms[1]
    assert ours.memory.weight_bytes == theirs.memory.weight_bytes
    assert ours.memory.kv_bytes_before == theirs.memory.kv_bytes_before
    assert ours.generated_tokens.samples == [6.0]


POLICIES = {
    "vtw:layer=1": 0.0,
    "vtw:layer=1+mvw:m=3": 0.0,
    "random:layer=1,keep=0.5": 0.5,
    "anneal:end=4,every=1": 1.0,
    "mvw:m=2+look-back:entropy=0,steps=2": 1.0,
    "pulse": 1.0,
}
"""With the part of the vision that a layer after the first reads in the prefill."""


@pytest.mark.parametrize("adapter", ["hf", "kimi-vl", "llava-cot"])
def test_every_kind_of_policy_is_measured_and_bounded(adapter: str, tmp_path: Path) -> None:
    arms = [arm_spec(name, {"policy": name}) for name in POLICIES]
    whole = job(tmp_path, runs=1, batch=2, new_tokens=6)
    session = tiny(adapter)
    whole = replace(whole, arms=(whole.arms[0], *arms))
    cell = measure(session, whole)
    assert cell is not None
    work, config = workload(session, whole, "given"), session.loaded.model.config
    flops = flops_of(load_adapter(adapter), config)
    cross_attention = any(layer.cross for layer in flops.shape.layers)
    text = work.prompt_tokens - (0 if cross_attention else work.vision_tokens)
    case = Case(flops, "float32", text, work.vision_tokens, 6)
    baseline, *others = with_bounds(cell, case).arms
    assert baseline.vision is not None and baseline.bound is not None
    assert baseline.vision.attended_along == [work.vision_tokens] * 6
    assert (baseline.bound.speedup, baseline.bound.prefill and baseline.bound.prefill.share) == (
        1,
        1,
    )
    for arm, part in zip(others, POLICIES.values(), strict=True):
        kept, seen = arm.memory, arm.vision
        assert kept.kv_formula_bytes_before in (None, kept.kv_bytes_before)
        assert seen is not None and arm.bound is not None and arm.bound.prefill is not None
        # At an entropy of 0 it looks back at once, and so it does whenever its time is over.
        back = "look-back" in arm.name
        assert (seen.attended < baseline.vision.attended) == (arm.bound.speedup > 1) == (not back)
        first = baseline.vision.held_by_layer[0]
        # LLaVA-CoT's first cross-attention layer comes after layer 1.
        assert seen.held_by_layer[0] == (part * first if cross_attention else first)
        assert seen.held_by_layer[-1] == part * first
        assert (arm.bound.prefill.share < 1) == (part < 1)
        assert arm.bound.prefill.speedup == pytest.approx(1 / arm.bound.prefill.share)
        assert (kept.host_offloaded_peak_bytes > 0) == (seen.look_backs > 0) == back
    blind = {arm.name: arm.withdrawn_after for arm in others}
    assert blind["vtw:layer=1"] == (0 if cross_attention else None)
    assert blind["vtw:layer=1+mvw:m=3"] == (0 if cross_attention else 3)
    assert blind["mvw:m=2+look-back:entropy=0,steps=2"] == 2 and blind["pulse"] is None
    if cross_attention:  # from the first step on it does what a withdrawal at once does
        assert others[0].tpot_before_ms is None and others[0].tpot_after_ms is not None
