"""The slots hold what a plain list of entries would hold, whatever order things happen in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from mvw_cli.engine.cache import LayerKind, SlotCache, layer_kinds
from mvw_cli.engine.layers import DummyLayer
from mvw_cli.engine.rows import CHUNK, Offloaded, Rows, Span
from mvw_cli.engine.types import NotExact

SLOTS, HEADS, KEY, VALUE = 3, 2, 4, 3
SPANS = (None, Span(5), Span(4, chunked=True))
"""Of the layers with entries; a recurrent one and one that shares what the first holds follow."""
KINDS = (*map(LayerKind, SPANS), LayerKind(states=1), LayerKind(producer=0))
STATE_BYTES = (6 + 4) * 4


class Model:
    """The cache as lists: for each slot and layer, the sequence indices that are held."""

    def __init__(self) -> None:
        self.cache = SlotCache(KINDS)
        self.slots: dict[int, list[list[int]]] = {}
        self.states: dict[int, int] = {}
        self.names: dict[int, int] = {}
        self.lengths: dict[int, int] = {}
        self.offloaded: dict[int, tuple[list[Offloaded], list[list[int]]]] = {}
        self.count = 0

    def load(self, prompt: int, vision: bool = True) -> None:
        if len(self.slots) == SLOTS:
            return
        self.count += 1
        held = [list(range(max(0, prompt - kept), prompt)) for kept in (prompt, 4, 3)]
        layers = [*(DynamicLayer() for _ in held), LinearAttentionLayer(), DummyLayer()]
        prefilled = Cache(layers=layers)
        for layer, indices in enumerate(held):
            prefilled.update(*content(self.count, layer, indices), layer)
        prefilled.update_conv_state(torch.full((1, 2, 3), 100.0 * self.count), 3)
        prefilled.update_recurrent_state(torch.full((1, 4), 200.0 * self.count), 3)
        foretold = self.cache.room_bytes(prompt=prompt, vision=vision)
        slot = self.cache.load(prefilled, prompt, vision=vision)
        assert slot == min(set(range(SLOTS)) - self.slots.keys())
        if self.count > 1:
            self.cache.reserve_step()  # foretold with the next step, which another row may need
            assert self.cache.allocated_bytes() == foretold
        self.slots[slot] = held
        self.states[slot] = 100 * self.count
        self.names[slot] = self.count
        self.lengths[slot] = prompt

    def step(self, fails: bool = False) -> None:
        if not self.slots:
            return
        foretold = self.cache.room_bytes()
        self.cache.reserve_step()
        assert self.cache.allocated_bytes() == foretold
        order = self.cache.order
        self.cache.layers[3].conv_states[0].add_(1)
        if not fails:
            self.cache.update_recurrent_state(self.cache.layers[3].recurrent_states[0] + 2, 3)
        for layer in range(1 if fails else len(SPANS)):
            new = [content(self.names[slot], layer, [self.lengths[slot]]) for slot in order]
            self.cache.update(torch.cat([k for k, _ in new]), torch.cat([v for _, v in new]), layer)
        if fails:
            self.cache.undo_step()
            return
        for layer in self.cache.layers:
            layer.unattended = False  # nobody attends here
        self.cache.finish_step()
        for slot in order:
            for held in self.slots[slot]:
                held.append(self.lengths[slot])
            self.lengths[slot] += 1
            self.states[slot] += 1

    def withdraw(
        self, slot: int, gone: set[int], complete: bool = True, other: set[int] | None = None
    ) -> None:
        """Take entries out of a slot, others from the second layer where they are given."""
        if slot not in self.slots:
            return
        by_layer = [gone, *[gone if other is None else other] * 2]
        expected = sum(
            len(one.intersection(held))
            for one, held in zip(by_layer, self.slots[slot], strict=True)
        )
        masks = [*map(mask_of, by_layer), mask_of(set()), mask_of(set())]
        assert self.cache.withdraw(slot, masks, complete=complete) == expected
        self.slots[slot] = [
            [i for i in held if i not in one]
            for one, held in zip(by_layer, self.slots[slot], strict=True)
        ]

    def offload(self, slot: int, gone: set[int], complete: bool, other: set[int]) -> None:
        """Copy entries to the host, then take them out."""
        if slot not in self.slots or slot in self.offloaded:
            return
        by_layer = (gone, other, other)
        nothing = [mask_of(set())] * 2
        copies = self.cache.offload(slot, [*map(mask_of, by_layer), *nothing])
        lists = [
            [i for i in held if i in one]
            for one, held in zip(by_layer, self.slots[slot], strict=True)
        ]
        self.withdraw(slot, gone, complete, other)
        self.offloaded[slot] = copies, lists

    def restore(self, slot: int) -> None:
        if slot not in self.offloaded:
            return
        copies, lists = self.offloaded.pop(slot)
        assert self.cache.restore(slot, copies) == sum(map(len, lists))
        self.slots[slot] = [held + back for held, back in zip(self.slots[slot], lists, strict=True)]

    def release(self, slot: int) -> None:
        if slot not in self.slots:
            return
        self.cache.release(slot)
        for items in (self.slots, self.states, self.names, self.lengths):
            del items[slot]  # type: ignore[attr-defined]
        self.offloaded.pop(slot, None)

    def check(self) -> None:
        order = self.cache.order
        assert sorted(order) == sorted(self.slots)
        conv, recurrent = (
            self.cache.layers[3].conv_states[0],
            self.cache.layers[3].recurrent_states[0],
        )
        for row, slot in enumerate(order):
            assert conv[row].unique().tolist() == [self.states[slot]]
            assert recurrent[row].unique().tolist() == [2 * self.states[slot]]
        for number, layer in enumerate(self.cache.layers[: len(SPANS)]):
            rows = [
                (group, row)
                for group in (layer.withdrawn, layer.with_vision)
                for row in range(len(group))
            ]
            for slot, (group, row) in zip(order, rows, strict=True):
                held = self.slots[slot][number]
                keys, values = group.row(row)
                expected = content(self.names[slot], number, held)
                assert torch.equal(keys[None], expected[0])
                assert torch.equal(values[None], expected[1])
            if self.slots and all(entry[number] for entry in self.slots.values()):
                assert self.visible(number) == self.expected(number)
        for slot, layers in self.slots.items():
            entries = sum(len(held) for held in layers)
            own = self.cache.slot_bytes(slot) - STATE_BYTES
            assert own == entries * HEADS * (KEY + VALUE) * 4
            assert self.cache.state_bytes(slot) == STATE_BYTES

    def visible(self, number: int) -> list[list[int]]:
        """Which sequence indices the newest token of each slot may attend to, by the cache."""
        layer = self.cache.layers[number]
        seen: list[list[int]] = []
        held = [self.slots[slot][number] for slot in self.cache.order]
        for group in (layer.withdrawn, layer.with_vision):
            rows = held[len(seen) : len(seen) + len(group)]
            mask = group.attendable() if rows else None
            if mask is None:
                seen += rows
                continue
            seen += [
                [index for index, visible in zip(indices, row, strict=False) if visible]
                for indices, row in zip(rows, mask[:, 0, 0].tolist(), strict=True)
            ]
        return seen

    def expected(self, number: int) -> list[list[int]]:
        span, order = SPANS[number], self.cache.order
        if span is None:
            return [self.slots[slot][number] for slot in order]
        first = {slot: self.lengths[slot] - span.size for slot in order}
        if span.chunked:
            first = {slot: (self.lengths[slot] - 1) // 4 * 4 for slot in order}
        return [[one for one in self.slots[slot][number] if one >= first[slot]] for slot in order]


def mask_of(indices: set[int]) -> Tensor:
    mask = torch.zeros(max(indices, default=0) + 1, dtype=torch.bool)
    mask[list(indices)] = True
    return mask


def content(name: int, layer: int, indices: list[int]) -> tuple[Tensor, Tensor]:
    """Keys and values that tell by their numbers whose they are: # (1, H, T, D)."""
    base = torch.tensor(indices, dtype=torch.float32) + 1000 * name + 100_000 * layer
    keys = base[None, None, :, None] + torch.rand(1, HEADS, 1, KEY, generator=_fixed())
    values = -base[None, None, :, None] + torch.rand(1, HEADS, 1, VALUE, generator=_fixed())
    return keys, values


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


SLOT, INDICES = st.integers(0, SLOTS - 1), st.sets(st.integers(0, 40), max_size=20)
OPERATIONS = st.one_of(
    st.tuples(st.just("load"), st.integers(1, CHUNK + 20), st.booleans()),
    st.tuples(st.just("step"), st.just(True)),
    st.tuples(st.just("step")),
    st.tuples(st.just("withdraw"), SLOT, INDICES, st.booleans(), INDICES),
    st.tuples(st.just("offload"), SLOT, INDICES, st.booleans(), INDICES),
    st.tuples(st.just("restore"), SLOT),
    st.tuples(st.just("release"), SLOT),
    st.tuples(st.just("trim")),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(OPERATIONS, min_size=8, max_size=25))
@example([("step",)] * 5 + [("load", 1, False)])
def test_the_cache_behaves_like_lists(operations: list[tuple]) -> None:  # type: ignore[type-arg]
    model = Model()
    model.load(30)
    model.load(CHUNK - 5)
    for name, *arguments in operations:
        if name == "trim":
            model.cache.trim()
        else:
            getattr(model, name)(*arguments)
        model.check()


def test_capacity_follows_the_need_in_chunks() -> None:
    model = Model()
    model.load(3 * CHUNK)
    full = model.cache.layers[0]
    assert (full.with_vision.capacity, full.withdrawn.capacity) == (4 * CHUNK, 0)
    before = model.cache.allocated_bytes()
    model.withdraw(0, set(range(1, 3 * CHUNK)))
    assert (full.with_vision.capacity, full.withdrawn.capacity) == (0, CHUNK)
    assert full.withdrawn.states[0].untyped_storage().nbytes() == HEADS * CHUNK * KEY * 4
    assert model.cache.allocated_bytes() < before
    for _ in range(CHUNK):
        model.step()
    assert full.withdrawn.capacity == 2 * CHUNK
    model.check()


def test_a_withdrawn_row_is_not_as_wide_as_one_that_sees() -> None:
    """The rows that were withdrawn take their own entries, whatever the next image takes."""
    model = Model()
    for _ in range(SLOTS):
        model.load(8 * CHUNK)
    for slot in range(SLOTS - 1):
        model.withdraw(slot, set(range(8 * CHUNK - 10)))
    full = model.cache.layers[0]
    entry = HEADS * (KEY + VALUE) * 4
    allocated = sum(rows.allocated_bytes() for rows in full.groups)
    assert allocated == ((SLOTS - 1) * CHUNK + 9 * CHUNK) * entry


def test_a_lack_of_memory_leaves_the_cache_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading and withdrawing touch each layer in turn; both are undone if one has no room."""
    model = Model()
    model.load(20)
    model.load(30)
    load, calls = Rows.load, []

    def failing(rows: Rows, *arguments: object) -> None:
        calls.append(rows)
        if len(calls) % 2 == 0:
            raise torch.OutOfMemoryError("no room")
        load(rows, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Rows, "load", failing)
    with pytest.raises(torch.OutOfMemoryError):
        model.withdraw(0, set(range(10)))
    model.check()
    with pytest.raises(torch.OutOfMemoryError):
        model.load(10)
    model.check()
    monkeypatch.undo()
    model.step()
    model.withdraw(0, set(range(10)))
    model.check()


def test_room_that_can_not_be_given_back_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """To give room back takes a smaller storage first, and that may be too much already."""
    model = Model()
    model.load(3 * CHUNK)
    model.load(10)

    def short(rows: Rows, count: int, capacity: int) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Rows, "_resize", short)
    before = model.cache.allocated_bytes()
    model.release(0)
    model.check()
    assert model.cache.allocated_bytes() == before


def test_a_window_closes_behind_a_short_prompt() -> None:
    model = Model()
    model.load(2)
    for _ in range(8):
        model.step()
        model.check()


def test_room_for_a_longer_prompt_is_foretold() -> None:
    """The load itself holds what was foretold against what is taken."""
    for vision in (True, False):
        model = Model()
        model.load(CHUNK // 2, vision)
        model.load(CHUNK + 10, vision)
        model.load(3 * CHUNK, vision)
        model.check()


def test_a_state_of_another_kind_is_refused() -> None:
    """Attention and a recurrent state in one layer, as Falcon-H1 has it."""
    hybrid = Cache(layers=[DynamicLayer(), LinearAttentionAndFullAttentionLayer()])
    with pytest.raises(NotExact, match="layer 1 keeps a LinearAttentionAndFullAttentionLayer"):
        layer_kinds(hybrid, LlamaConfig(num_hidden_layers=2))
