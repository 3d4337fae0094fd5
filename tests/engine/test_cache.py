"""The slots hold what a plain list of entries would hold, whatever order things happen in."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from mvw_cli.engine.cache import CHUNK, SlotCache

SLOTS, WINDOWS, HEADS, KEY, VALUE = 3, (None, 5), 2, 4, 3


class Model:
    """The cache as lists: for each slot and layer, the sequence indices that are held."""

    def __init__(self) -> None:
        self.cache = SlotCache(SLOTS, WINDOWS)
        self.slots: list[list[list[int]]] = []
        self.names: list[int] = []
        self.lengths: list[int] = []
        self.count = 0

    def load(self, prompt: int) -> None:
        if len(self.slots) == SLOTS:
            return
        self.count += 1
        held = [list(range(prompt)), list(range(max(0, prompt - 4), prompt))]
        prefilled = DynamicCache()
        for layer, indices in enumerate(held):
            prefilled.update(*content(self.count, layer, indices), layer)
        assert self.cache.load(prefilled, prompt) == len(self.slots)
        self.slots.append(held)
        self.names.append(self.count)
        self.lengths.append(prompt)

    def step(self) -> None:
        if not self.slots:
            return
        self.cache.reserve_step()
        for layer in range(len(WINDOWS)):
            new = [
                content(name, layer, [length])
                for name, length in zip(self.names, self.lengths, strict=True)
            ]
            self.cache.update(torch.cat([k for k, _ in new]), torch.cat([v for _, v in new]), layer)
            for slot, length in enumerate(self.lengths):
                self.slots[slot][layer].append(length)
        self.lengths = [length + 1 for length in self.lengths]

    def withdraw(self, slot: int, gone: set[int]) -> None:
        if slot >= len(self.slots):
            return
        size = max(gone, default=0) + 1
        mask = torch.zeros(size, dtype=torch.bool)
        mask[list(gone)] = True
        expected = sum(len(gone.intersection(held)) for held in self.slots[slot])
        assert self.cache.withdraw(slot, mask) == expected
        self.slots[slot] = [[i for i in held if i not in gone] for held in self.slots[slot]]

    def release(self, slot: int) -> None:
        if slot >= len(self.slots):
            return
        moved = self.cache.release(slot)
        last = len(self.slots) - 1
        assert moved == (None if slot == last else last)
        for items in (self.slots, self.names, self.lengths):
            items[slot] = items[last]
            items.pop()

    def check(self) -> None:
        assert self.cache.active == len(self.slots)
        for number, layer in enumerate(self.cache.layers):
            for slot, held in enumerate(entry[number] for entry in self.slots):
                keys, values = content(self.names[slot], number, held)
                assert torch.equal(layer.keys[slot : slot + 1, :, : len(held)], keys)
                assert torch.equal(layer.values[slot : slot + 1, :, : len(held)], values)
            if self.slots and all(entry[number] for entry in self.slots):
                assert self.visible(number) == self.expected(number)
        for slot, layers in enumerate(self.slots):
            entries = sum(len(held) for held in layers)
            assert self.cache.slot_bytes(slot) == entries * HEADS * (KEY + VALUE) * 4

    def visible(self, number: int) -> list[list[int]]:
        """Which sequence indices the newest token of each slot may attend to, by the cache."""
        mask = self.cache.layers[number].attendable()
        held = [entry[number] for entry in self.slots]
        if mask is None:
            return held
        return [
            [index for index, seen in zip(indices, row, strict=False) if seen]
            for indices, row in zip(held, mask[:, 0, 0].tolist(), strict=True)
        ]

    def expected(self, number: int) -> list[list[int]]:
        window = WINDOWS[number]
        if window is None:
            return [entry[number] for entry in self.slots]
        return [
            [index for index in entry[number] if index > length - 1 - window]
            for entry, length in zip(self.slots, self.lengths, strict=True)
        ]


def content(name: int, layer: int, indices: list[int]) -> tuple[Tensor, Tensor]:
    """Keys and values that tell by their numbers whose they are: # (1, H, T, D)."""
    base = torch.tensor(indices, dtype=torch.float32) + 1000 * name + 100_000 * layer
    keys = base[None, None, :, None] + torch.rand(1, HEADS, 1, KEY, generator=_fixed())
    values = -base[None, None, :, None] + torch.rand(1, HEADS, 1, VALUE, generator=_fixed())
    return keys, values


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


OPERATIONS = st.one_of(
    st.tuples(st.just("load"), st.integers(1, CHUNK + 20)),
    st.tuples(st.just("step")),
    st.tuples(st.just("step")),
    st.tuples(
        st.just("withdraw"), st.integers(0, SLOTS - 1), st.sets(st.integers(0, 40), max_size=20)
    ),
    st.tuples(st.just("release"), st.integers(0, SLOTS - 1)),
    st.tuples(st.just("trim")),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(OPERATIONS, max_size=25))
def test_the_cache_behaves_like_lists(operations: list[tuple]) -> None:  # type: ignore[type-arg]
    model = Model()
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
    assert full.capacity == 4 * CHUNK
    model.withdraw(0, set(range(1, 3 * CHUNK)))
    before = model.cache.allocated_bytes()
    model.cache.trim()
    assert full.capacity == CHUNK
    assert full.keys.untyped_storage().nbytes() == SLOTS * HEADS * CHUNK * KEY * 4
    assert model.cache.allocated_bytes() < before
    for _ in range(CHUNK):
        model.step()
    assert full.capacity == 2 * CHUNK
    model.check()
