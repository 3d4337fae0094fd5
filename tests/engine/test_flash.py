"""The flash-attn path: which calls go to flash-attn and which to SDPA, and that it is exact."""

from __future__ import annotations

import pytest
from families import BY_NAME, IMAGE, Family, build
from flash_library import FlashLibrary, installed
from running import request, run

from mvw_cli.oracle.masked import oracle_logits


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FlashLibrary:
    return installed(monkeypatch, lambda model: None)


def family(name: str) -> Family:
    return BY_NAME[name]


EXPECTED = {
    # Dense and causal throughout: everything goes to flash-attn.
    "llava": {"prefill", "decode"},
    "qwen2_5_vl": {"prefill", "decode"},
    # Gemma's image tokens see each other, so its prefill needs masks; its sliding layers always do.
    "gemma3": {"decode"},
    # MLA's keys and values differ in width.
    "kimi_text_stack": set(),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_flash_equals_oracle(name: str, library: FlashLibrary) -> None:
    model = build(family(name))
    plan = [(0, 2), (1, 5), (2, None)]
    inputs = {str(seed): family(name).prompt(seed) for seed, _ in plan}
    requests = [
        request(inputs[str(seed)], inputs[str(seed)]["input_ids"][0] == IMAGE, m, name=str(seed))
        for seed, m in plan
    ]
    results = run(model, requests, slots=2, attention="auto")
    assert set(library.calls) == EXPECTED[name]
    for one, (seed, m) in zip(requests, plan, strict=True):
        ids = results[str(seed)].completion.token_ids
        expected = oracle_logits(model, one.inputs, ids, one.layout.entries, m)
        assert (results[str(seed)].logits - expected).abs().max() < 1e-5
