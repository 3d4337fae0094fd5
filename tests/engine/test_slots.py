"""The slots as whoever drives them sees them: failures leave them whole, room is foretold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import BY_NAME, build, there
from mvw_hf.model import HuggingFace
from PIL import Image
from running import loaded, request

from mvw_cli.engine.engine import Engine
from mvw_cli.engine.rows import Rows
from mvw_cli.engine.slots import Slots
from mvw_cli.engine.types import Finished, summarise

ADAPTER = HuggingFace()


@pytest.fixture(scope="module")
def tiny() -> Any:
    return ADAPTER.tiny()


def ask(tiny: Any, name: str, m: int | None, colour: str, tokens: int) -> Any:
    inputs = ADAPTER.encode(tiny, [Image.new("RGB", (40, 30), colour)], "w1 w2")
    vision = ADAPTER.vision(tiny, inputs).entries
    return request(inputs, vision, m, name=name, max_new_tokens=tokens, temperature=1.0)


def finish(slots: Slots, events: list[Any]) -> dict[str, tuple[int, ...]]:
    while slots.active:
        events += slots.step()
    return {event.request: event.token_ids for event in events if isinstance(event, Finished)}


def both(tiny: Any) -> list[Any]:
    return [ask(tiny, "a", 3, "red", 14), ask(tiny, "b", 9, "blue", 16)]


def test_a_step_that_fails_half_way_can_be_made_again(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out at each layer in turn, at each step; no token changes."""
    engine = Engine(loaded(tiny.model, tiny.processor))
    with engine.serving() as slots:
        undisturbed = finish(slots, [e for one in both(tiny) for e in slots.admit(one)])
    layers = tiny.model.get_decoder().layers
    failures = 0
    with engine.serving() as slots:
        events = [event for one in both(tiny) for event in slots.admit(one)]
        while slots.active:
            for layer in layers:

                def fail(*args: Any) -> None:
                    raise torch.OutOfMemoryError("no room")

                handle = layer.register_forward_hook(fail)
                before = slots.kv_bytes
                with pytest.raises(torch.OutOfMemoryError):
                    slots.step()
                handle.remove()
                assert slots.kv_bytes == before
                failures += 1
            events += slots.step()
    assert failures > 20
    assert finish(slots, events) == undisturbed


def test_a_prefill_that_fails_leaves_the_others_alone(tiny: Any) -> None:
    engine = Engine(loaded(tiny.model, tiny.processor))
    first, second = both(tiny)
    with engine.serving() as slots:
        alone = finish(slots, slots.admit(first))
    with engine.serving() as slots:
        events = slots.admit(first)
        events += slots.step()
        broken = {**second.inputs, "pixel_values": second.inputs["pixel_values"][:, :2]}
        with pytest.raises(Exception):  # noqa: B017 - whatever the model raises
            slots.admit(type(second)("b", broken, second.layout, second.policy, second.settings))
        assert slots.active == ["a"]
        assert finish(slots, events) == alone


def test_a_dropped_request_starts_again_with_the_same_tokens(tiny: Any) -> None:
    engine = Engine(loaded(tiny.model, tiny.processor))
    with engine.serving() as slots:
        undisturbed = finish(slots, [e for one in both(tiny) for e in slots.admit(one)])
    with engine.serving() as slots:
        first, second = both(tiny)
        events = [*slots.admit(first), *slots.admit(second)]
        for _ in range(5):
            events += slots.step()
        slots.drop("a")
        assert slots.active == ["b"]
        events = [event for event in events if event.request == "b"]
        events += slots.step()
        events += slots.admit(first)
        assert finish(slots, events) == undisturbed
        assert summarise([event for event in events if event.request == "a"]).generated_tokens == 14
    assert slots.kv_allocated_bytes == 0


@pytest.mark.parametrize("family", there("qwen2_5_vl", "mllama", "gemma3", "qwen3_5", "gemma4"))
def test_the_room_that_is_foretold_is_the_room_that_is_taken(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each admission and each step, for several requests that withdraw at their own time."""
    monkeypatch.setattr("mvw_cli.engine.rows.CHUNK", 4)
    chosen = BY_NAME[family]
    model = build(chosen)
    engine = Engine(loaded(model))
    with engine.serving() as slots:
        for number, m in enumerate([2, None, 5, 3]):
            inputs = chosen.prompt(3 - number)  # the last is the longest
            one = request(inputs, chosen.layout(inputs), m, name=str(number), max_new_tokens=12)
            foretold = slots.room_bytes(one)
            slots.admit(one)
            if number:
                assert slots.kv_allocated_bytes == foretold
            withdrawn: list[Any] = []
            while slots.active and not withdrawn and number == 3:
                foretold = slots.room_bytes()
                events = slots.step()
                withdrawn = [e for e in events if type(e).__name__ in ("Withdrawn", "Finished")]
                if not withdrawn:
                    assert slots.kv_allocated_bytes == foretold
        assert slots.active


@pytest.mark.parametrize("family", there("qwen2_5_vl", "mllama", "gemma3", "qwen3_5", "gemma4"))
@pytest.mark.parametrize("count", [3, 7])
def test_room_that_is_foretold_for_withdrawals_is_never_exceeded(
    family: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are withdrawn in one step, or one after the other; each allocation counts."""
    monkeypatch.setattr("mvw_cli.engine.rows.CHUNK", 4)
    chosen = BY_NAME[family]
    model, load = build(chosen), Rows.load
    for stagger in (0, 1):
        with Engine(loaded(model)).serving() as slots:
            peak = [0]

            def watched(rows: Rows, *args: Any) -> None:
                load(rows, *args)
                peak[0] = max(peak[0], slots.kv_allocated_bytes)  # noqa: B023

            monkeypatch.setattr(Rows, "load", watched)
            inputs = chosen.prompt(0)
            for number in range(count):
                m = 3 + count - number if not stagger else 9
                one = request(inputs, chosen.layout(inputs), m, name=str(number), max_new_tokens=18)
                slots.admit(one)
                slots.step()
            foretold = slots.room_bytes(ahead=8, withdrawing=True)
            assert foretold > slots.room_bytes(ahead=8) or family == "mllama"
            peak[0], withdrawn = 0, 0
            for _ in range(8):
                withdrawn += sum(type(e).__name__ == "Withdrawn" for e in slots.step())
            assert withdrawn >= 3
            assert 0 < peak[0] <= foretold
            monkeypatch.setattr(Rows, "load", load)
