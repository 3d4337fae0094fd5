"""KV bytes against the configuration and the storages, and peaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CLIP, FAMILIES, IMAGE, TEXT, Family, build
from mvw_hf.model import HuggingFace
from torch import Tensor

from mvw_cli.adapter import LoadedModel, ModelSpec
from mvw_cli.bench.measure import device
from mvw_cli.bench.measure.events import formula_kv_bytes, kv_bytes
from mvw_cli.cost.shape import shape_of
from mvw_cli.engine.engine import Engine
from mvw_cli.engine.rows import Rows
from mvw_cli.engine.slots import Slots
from mvw_cli.engine.types import Event, GenerationSettings, Request, Withdrawn
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import WithdrawalPolicy

GREEDY = GenerationSettings(max_new_tokens=20, temperature=0, ignore_eos=True)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def requests(family: Family, *policies: WithdrawalPolicy) -> list[Request]:
    prompts = [family.prompt(seed) for seed in range(len(policies))]
    return [
        Request(str(number), prompt, family.layout(prompt), policy, GREEDY)
        for number, (prompt, policy) in enumerate(zip(prompts, policies, strict=True))
    ]


def serve(engine: Engine, asked: list[Request]) -> Iterator[tuple[list[Event], Slots]]:
    """Admit all, then step to the end; give the events and the slots after each step."""
    with engine.serving() as slots:
        yield [event for request in asked for event in slots.admit(request)], slots
        while slots.active:
            yield slots.step(), slots


def loaded(model: Any) -> LoadedModel:
    return LoadedModel("test", "tiny", model, None, ModelSpec())


def tensors(slots: Slots) -> Iterator[tuple[Tensor, int]]:
    """Every tensor of the cache, and the entries of it that are in use, row by row."""
    for layer in slots._cache.layers:
        for rows in (getattr(layer, "withdrawn", None), getattr(layer, "with_vision", None)):
            for states in () if rows is None else rows.states:
                yield from zip(states, rows.lengths, strict=False)
        for states in (getattr(layer, "conv_states", {}), getattr(layer, "recurrent_states", {})):
            for state in states.values():
                yield from ((row[:, None], 1) for row in (() if state is None else state))


@pytest.mark.parametrize(
    "family",
    # The vision tower of Gemma 3n is in timm, which is not installed.
    [family for family in FAMILIES if family.name != "gemma3n"],
    ids=lambda family: family.name,
)
def test_the_formula_is_what_the_tensors_hold(family: Family) -> None:
    """GQA, MLA, cross-attention, recurrent states and what is shared, withdrawn bit by bit."""
    model = build(family)
    shape = shape_of(HuggingFace(), model.config)
    windows = any(layer.window is not None for layer in shape.layers)
    asked = requests(family, Mvw(m=3), Mvw(m=1), NoWithdrawal())
    events: list[Event] = []
    gone: set[str] = set()
    for step, (news, slots) in enumerate(serve(Engine(loaded(model), slots=3), asked)):
        events += news
        gone |= {event.request for event in news if isinstance(event, Withdrawn)}
        if not slots.active:
            break
        held = sum(rows[:, :length].numel() * 4 for rows, length in tensors(slots))
        assert held == slots.kv_bytes
        formula = 0
        for request in asked:
            layout = request.layout
            text = len(layout.entries) - int(layout.entries.sum()) + step
            vision = 0 if request.id in gone else layout.vision_tokens
            formula += shape.cache_bytes(text, vision, 4)
        assert held == formula or windows
    assert gone == {"0", "1"}
    assert formula_kv_bytes(shape, 4, events) == (None if windows else kv_bytes(events))
    before, after = kv_bytes(events)
    assert after < before


def large_image() -> tuple[Any, Request]:
    """A LLaVA whose image is much larger than the steps in which storages grow."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**{**CLIP, "image_size": 96, "patch_size": 4}),
        text_config=LlamaConfig(**{**TEXT, "max_position_embeddings": 1024}),
        image_token_id=IMAGE,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[1, 5, *[IMAGE] * 576, 6, 7]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.zeros(1, 3, 96, 96),
    }
    layout = HuggingFace().vision(loaded(model), inputs)
    settings = replace(GREEDY, max_new_tokens=8)
    return model, Request("0", inputs, layout, Mvw(m=4), settings)


def kv_along() -> list[tuple[int, int]]:
    """Entries in use and the storages behind them, after each token."""
    model, request = large_image()
    return [
        (slots.kv_bytes, slots.kv_allocated_bytes)
        for _, slots in serve(Engine(loaded(model)), [request])
    ]


def test_storages_go_with_the_entries() -> None:
    entries, storages = zip(*kv_along(), strict=True)
    assert entries[3] < entries[2] / 50
    assert storages[3] < storages[2] / 4
    assert all(held >= used for held, used in zip(storages, entries, strict=True))


def test_a_view_that_keeps_the_old_storage_frees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The defect that the figure is there to show: entries gone by slicing, memory not."""

    def sliced(rows: Rows, *_: object) -> None:
        longest = rows.longest + 1 if rows.entries else 0
        rows.states = tuple(one[: len(rows.entries), :, :longest] for one in rows.states)

    monkeypatch.setattr(Rows, "trim", sliced)
    entries, storages = zip(*kv_along(), strict=True)
    assert entries[3] < entries[2] / 50
    assert storages[3] >= storages[2]


def test_weights_are_counted_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4, bias=False))
    assert device.weight_bytes(model) == (32 + 8 + 32) * 4
    model[1].weight = torch.nn.Parameter(torch.zeros(4, 8, dtype=torch.bfloat16))
    model.register_buffer("table", torch.zeros(10, dtype=torch.int8))
    assert device.weight_bytes(model) == (32 + 8) * 4 + 32 * 2 + 10
    tied = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    assert device.weight_bytes(tied) == 16 * 4


def test_the_allocators_of_all_devices_count(monkeypatch: pytest.MonkeyPatch) -> None:
    reset: list[int] = []
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: reset.append(device.index)
    )
    for name, of_the_first in (("max_memory_allocated", 30), ("max_memory_reserved", 40)):
        monkeypatch.setattr(torch.cuda, name, lambda device, size=of_the_first: size + device.index)
    peaks = device.Peaks([torch.device("cuda", 0), torch.device("cuda", 1), torch.device("cpu")])
    assert reset == [0, 1]
    assert (peaks.allocated_bytes, peaks.reserved_bytes) == (61, 81)


def test_where_the_system_tells_nothing_there_is_no_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device, "_PROC", tmp_path / "none")
    peaks = device.Peaks([torch.device("cpu")])
    assert peaks.process_bytes is peaks.allocated_bytes is peaks.reserved_bytes is None
