"""Finding and timing the vision encoder, in every family that the engine serves."""

from __future__ import annotations

import time
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from families import FAMILIES, Family, build

from mvw_cli.bench.measure.device import Clock
from mvw_cli.bench.measure.run import vision_parts, watched_vision
from mvw_cli.plugins import load_adapter

TOWERS = {
    "idefics3": ["vision_model", "connector"],
    "smolvlm": ["vision_model", "connector"],
    "mllama": ["vision_model", "multi_modal_projector"],
    "qwen2_vl": ["visual"],
    "qwen2_5_vl": ["visual"],
    "qwen3_vl": ["visual"],
    "glm4v": ["visual"],
    "glm4v_moe": ["visual"],
    "qwen3_5": ["visual"],
    "qwen3_5_moe": ["visual"],
    "minicpmv4_6": ["vision_tower", "merger"],
    "llama4": ["vision_model", "multi_modal_projector"],
    "gemma3n": ["vision_tower", "embed_vision", "audio_tower", "embed_audio"],
    "gemma4": ["vision_tower", "embed_vision"],
}
USUAL = ["vision_tower", "multi_modal_projector"]


def slowed(module: Any, seconds: float) -> None:
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return plain(*args, **kwargs)

    module.forward = forward


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_vision_encoder_is_found_and_timed(family: Family) -> None:
    model, inputs = build(family), family.prompt(0)
    parts = vision_parts(model)
    names = {id(module): name for name, module in model.named_modules()}
    found = [names[id(part)].rpartition(".")[2] for part in parts]
    assert sorted(found) == sorted(TOWERS.get(family.name, USUAL))
    slowed(parts[0], 0.03)
    slowed(model.get_decoder(), 0.2)
    with torch.inference_mode():
        plain = model(**inputs).logits
        with watched_vision(model) as vision:
            watched = model(**inputs).logits
            seconds = vision()
    assert torch.equal(plain, watched)
    assert seconds is not None and 0.03 <= seconds < 0.2
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in parts)


def test_without_an_image_there_is_nothing_to_time() -> None:
    model = build(FAMILIES[0])
    with watched_vision(model) as vision, torch.inference_mode():
        model(input_ids=torch.tensor([[1, 5, 6]]))
        assert vision() is None


def test_hooks_go_when_the_model_fails() -> None:
    model = build(FAMILIES[0])
    with pytest.raises(RuntimeError), watched_vision(model):
        raise RuntimeError
    assert not any(module._forward_hooks for module in model.modules())


def test_kimi_s_projector_is_part_of_it() -> None:
    model = load_adapter("kimi-vl").tiny().model
    names = {id(module): name for name, module in model.named_modules()}
    found = [names[id(part)] for part in vision_parts(model)]
    assert sorted(found) == ["model.mm_projector", "model.vision_tower"]


def test_a_clock_of_the_processor_needs_no_waiting() -> None:
    clock = Clock(torch.device("cpu"))
    start = clock.mark()
    time.sleep(0.01)
    assert 0.01 <= clock.seconds(start, clock.mark()) < 0.5


def test_a_mark_on_cuda_is_an_event_and_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[object] = []
    events = [MagicMock(), MagicMock()]
    made = iter(events)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: next(made))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: ("stream of", device))
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    device = torch.device("cuda", 1)
    clock = Clock(device)
    start, end = clock.mark(), clock.mark()
    start.record.assert_called_once_with(("stream of", device))
    start.elapsed_time.return_value = 12.5  # ms
    assert clock.seconds(start, end) == 0.0125
    end.synchronize.assert_called_once()  # the event was waited for, not all of the device
    assert waits == []
    clock.now()
    assert waits == [device]


def test_metal_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[None] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waits.append(None))
    clock = Clock(torch.device("mps"))
    start = clock.mark()
    assert clock.seconds(start, clock.mark()) >= 0
    assert len(waits) == 2
