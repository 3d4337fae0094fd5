"""The engine equals the oracle on each device, with each kernel, in each precision.

`pytest -m gpu` runs the cases on CUDA. The same function runs on the CPU with the suite, so that it
is known to be right before there is a device.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from families import BY_NAME, build
from running import loaded, request

from mvw_cli.engine.attention import choose_kernel
from mvw_cli.engine.types import NotExact
from mvw_cli.oracle.equivalence import ALLOWED, TOLERANCE, distances, run

NAMES = ("llava", "qwen2_5_vl", "gemma3", "mllama", "kimi_text_stack")
"""Grouped queries, M-RoPE, sliding windows, cross-attention, latent attention with experts."""
CUDA = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
)
ON_CPU = [("cpu", kernel) for kernel in ("sdpa", "eager")]
ON_CUDA = [pytest.param("cuda", kernel, marks=CUDA) for kernel in ("sdpa", "eager", "flash")]

HALF_NAMES = NAMES[:-1]
"""In half precision a rounding error may send a token to another expert."""
PLAN = ((0, 2), (1, 5), (2, 1), (3, 9))
"""Seed of the prompt, and m: in two slots, rows with vision stand next to rows without."""


@cache
def model_of(name: str) -> Any:
    return build(BY_NAME[name])


def on(device: str, dtype: torch.dtype, name: str) -> Any:
    return deepcopy(model_of(name)).to(device, dtype)


def asked(model: Any, name: str) -> list[Any]:
    requests = []
    for seed, m in PLAN:
        inputs = BY_NAME[name].prompt(seed)
        moved = {
            key: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
            for key, value in inputs.items()
        }
        layout = BY_NAME[name].layout(moved)
        requests.append(request(moved, layout, m, name=str(seed), max_new_tokens=12))
    return requests


def check_kernel(model: Any, kernel: str) -> None:
    try:
        choose_kernel(model, kernel)
    except NotExact as error:
        pytest.skip(f"{kernel} can't serve it: {error}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("device", "kernel"), [*ON_CPU, *ON_CUDA[:2]])
def test_engine_equals_oracle_in_float32(device: str, name: str, kernel: str) -> None:
    model = on(device, torch.float32, name)
    check_kernel(model, kernel)
    requests = asked(model, name)
    trials, served_by = run(loaded(model), requests, slots=2, attention=kernel)
    assert served_by == kernel and len(trials) == len(PLAN)
    for one, trial, (_, m) in zip(requests, trials, PLAN, strict=True):
        difference, rounding, effect = distances(model, one, trial, m)
        assert trial.logits.device.type == device and rounding is None
        assert difference < TOLERANCE and effect > 100 * TOLERANCE


@pytest.mark.parametrize("name", HALF_NAMES)
@pytest.mark.parametrize(("device", "kernel"), [*ON_CPU, *ON_CUDA])
def test_engine_is_as_near_as_bfloat16_allows(device: str, name: str, kernel: str) -> None:
    """Held against the oracle in float32: a few times further off than the oracle in bfloat16."""
    model = on(device, torch.bfloat16, name)
    check_kernel(model, kernel)
    requests = asked(model, name)
    trials, served_by = run(loaded(model), requests, slots=2, attention=kernel)
    assert served_by == kernel
    told = 0
    for one, trial, (_, m) in zip(requests, trials, PLAN, strict=True):
        difference, rounding, effect = distances(model, one, trial, m)
        assert rounding is not None and 0 < difference <= ALLOWED * rounding
        told += effect > 3 * ALLOWED * rounding
    assert told >= len(PLAN) / 2, "withdrawal must change more than rounding does"
