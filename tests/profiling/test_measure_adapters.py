"""The measurement on each adapter's own model: GQA, MLA with its faster step, cross-attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from planted import job
from sessions import tiny

from mvw_cli.profiling.measure import measure


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("adapter", ["shapes", "hf", "kimi-vl", "llava-cot"])
def test_kv_bytes_agree_with_the_configuration_and_the_vision_encoder_is_seen(
    adapter: str, tmp_path: Path
) -> None:
    whole = job(tmp_path, runs=1, batch=2, new_tokens=6)
    measured = measure(whole, session=tiny(adapter))
    assert measured.cell is not None
    for arm in measured.cell.arms:
        kept = arm.memory
        assert kept.kv_bytes_before == kept.kv_formula_bytes_before
        assert kept.kv_bytes_after == kept.kv_formula_bytes_after
        assert (kept.kv_bytes_after < kept.kv_bytes_before) == (arm.name == "m=4")
        vision = arm.phases.vision_ms
        assert vision is not None and arm.phases.prefill_ms is not None
        assert 0 < vision.median < arm.phases.prefill_ms.median
    assert measured.workload.vision_tokens > 0


def test_random_weights_are_measured_at_the_true_shape(tmp_path: Path) -> None:
    measured = measure(job(tmp_path, runs=1, new_tokens=6, random_weights=True))
    assert measured.model.random_weights
    read = measure(job(tmp_path, runs=1, new_tokens=6))
    assert not read.model.random_weights
    assert measured.cell is not None and read.cell is not None
    ours, theirs = measured.cell.arms[1], read.cell.arms[1]
    assert ours.memory.weight_bytes == theirs.memory.weight_bytes
    assert ours.memory.kv_bytes_before == theirs.memory.kv_bytes_before
    assert ours.generated_tokens.samples == [6.0]
