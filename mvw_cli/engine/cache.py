"""The KV cache of the engine: fixed slots, each with its own length at every layer.

It stores, grows, compacts and counts bytes. It does not attend (`attention.py`), and it does not
know which entries are vision tokens until it is told which to withdraw.

Slots 0…n-1 are the ones in use, always, so that a decode step runs over a plain view of the
first n rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from mvw_cli.engine.cross_attention import CrossLayer
from mvw_cli.engine.exact import NotExact

CHUNK = 128
"""Capacity, in entries, comes in multiples of this: each growth copies the buffers once."""


@dataclass(slots=True)
class Entries:
    """Which sequence positions the cache entries of one slot stand for, at one layer.

    Entries are never renumbered: after a withdrawal the remaining ones keep the index they had.
    """

    kept: Tensor
    """Index in the sequence of the entries that were loaded or kept.  # (K,) long, on the host"""
    following: int
    """Index of the first entry appended since; the ones after it follow on."""
    length: int
    """Entries in use: K and those appended."""
    oldest: int = field(init=False)
    """Lowest index in the sequence."""

    def __post_init__(self) -> None:
        self.oldest = int(self.kept.min()) if len(self.kept) else self.following

    @property
    def next_index(self) -> int:
        """Index in the sequence of the next token to be appended."""
        return self.following + self.length - len(self.kept)

    def indices(self, capacity: int) -> Tensor:
        """Index in the sequence of every place of the buffer, those not yet filled included.

        # (capacity,) long
        """
        after = torch.arange(capacity - len(self.kept)) + self.following
        return torch.cat([self.kept, after])


EMPTY = torch.empty(0, dtype=torch.long)


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer: `keys` and `values` are  # (slots, H, capacity, D); D of the two may differ."""

    is_compileable = False

    def __init__(
        self, slots: int, window: int | None, memo: dict[tuple[object, ...], Tensor]
    ) -> None:
        super().__init__()
        self.slots = slots
        self._memo = memo
        self.window = window
        """Sliding-window size in tokens, or None for full attention."""
        self.is_sliding = window is not None
        self.active = 0
        self.entries = [Entries(EMPTY, 0, 0) for _ in range(slots)]
        self.index: Tensor | None = None
        """Index in the sequence of each place, for sliding layers only.  # (slots, capacity)"""
        self.unattended = False
        """Set by `update`, cleared by the attention function: it must see every update."""

    @property
    def capacity(self) -> int:
        return 0 if self.keys is None else int(self.keys.shape[2])

    @property
    def lengths(self) -> list[int]:
        """Entries in use, of the active slots."""
        return [entry.length for entry in self.entries[: self.active]]

    # -- what transformers calls ------------------------------------------------------------

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        heads = key_states.shape[1]
        self.keys = key_states.new_empty(self.slots, heads, 0, key_states.shape[3])
        self.values = value_states.new_empty(self.slots, heads, 0, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append one entry to each active slot; return views of what has to be attended.

        key_states, value_states: # (active, H, 1, D). Returned: # (active, H, longest, D).
        """
        rows, lengths = self.active, self.lengths
        first, longest = lengths[0], max(lengths)
        if longest == min(lengths):
            self.keys[:rows, :, first : first + 1] = key_states
            self.values[:rows, :, first : first + 1] = value_states
        else:
            row = torch.arange(rows, device=self.keys.device)
            place = self.on_device(lengths)
            self.keys[row, :, place] = key_states[:, :, 0]
            self.values[row, :, place] = value_states[:, :, 0]
        for entry in self.entries[:rows]:
            entry.length += 1
        self.unattended = True
        return self.keys[:rows, :, : longest + 1], self.values[:rows, :, : longest + 1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return max(self.lengths, default=0) + query_length, 0

    def get_seq_length(self) -> int:
        return max((entry.next_index for entry in self.entries[: self.active]), default=0)

    def get_max_length(self) -> int:
        return -1

    # -- what the engine calls --------------------------------------------------------------

    def load(self, slot: int, keys: Tensor, values: Tensor, prompt: int) -> None:
        """Fill a slot from a prefill of `prompt` tokens.

        keys, values: # (1, H, T, D); T is below `prompt` where a sliding layer let go of the start.
        """
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        length = keys.shape[2]
        self.reserve(length + 1)
        self.keys[slot, :, :length] = keys[0]
        self.values[slot, :, :length] = values[0]
        self._describe(slot, Entries(torch.arange(prompt - length, prompt), prompt, length))

    def keep(self, slot: int, places: Tensor) -> None:
        """Keep only the given places of a slot, in order, moved together to the front.

        places: # (K,) long, on the host
        """
        entry = self.entries[slot]
        indices = entry.indices(entry.length)
        on_device = places.to(self.keys.device)
        kept = len(places)
        # Indexing copies, so the source is safe from the writes.
        self.keys[slot, :, :kept] = self.keys[slot][:, on_device]
        self.values[slot, :, :kept] = self.values[slot][:, on_device]
        self._describe(slot, Entries(indices[places], entry.next_index, kept))

    def move(self, source: int, target: int) -> None:
        """Copy slot `source` over slot `target`."""
        entry = self.entries[source]
        self.keys[target, :, : entry.length] = self.keys[source, :, : entry.length]
        self.values[target, :, : entry.length] = self.values[source, :, : entry.length]
        self._describe(target, Entries(entry.kept, entry.following, entry.length))

    def reserve(self, length: int) -> None:
        """Make room for `length` entries in every slot."""
        if length > self.capacity:
            self.resize(length)

    def resize(self, length: int) -> None:
        """Set the capacity to the smallest multiple of `CHUNK` that holds `length` entries."""
        capacity = -(-length // CHUNK) * CHUNK
        if capacity == self.capacity:
            return
        used = min(capacity, max((entry.length for entry in self.entries), default=0))
        self.keys = _resized(self.keys, capacity, used)
        self.values = _resized(self.values, capacity, used)
        if self.window is not None:
            self.index = torch.stack([entry.indices(capacity) for entry in self.entries]).to(
                self.keys.device
            )

    def withdraw(self, slot: int, indices: Tensor) -> int:
        """Take the entries of some sequence indices out of a slot; return how many went.

        indices: # (P,) bool, True where the entry goes; tokens past P stay.
        """
        entry = self.entries[slot]
        present = entry.indices(entry.length)
        prompt = present < len(indices)
        leaves = torch.zeros(entry.length, dtype=torch.bool)
        leaves[prompt] = indices[present[prompt]]
        if leaves.any():
            self.keep(slot, (~leaves).nonzero()[:, 0])
        return int(leaves.sum())

    def reserve_step(self) -> None:
        """Make room for one more entry in every active slot."""
        self.reserve(max(self.lengths) + 1)

    def trim(self) -> None:
        """Give back capacity that no active slot needs."""
        needed = max(self.lengths, default=0) + 1
        if self.is_initialized and self.capacity - needed >= CHUNK:
            self.resize(needed)

    def clear(self, slot: int) -> None:
        """Forget what a slot held."""
        self._describe(slot, Entries(EMPTY, 0, 0))

    def slot_bytes(self, slot: int) -> int:
        """Bytes of the entries that a slot uses."""
        return self.entries[slot].length * self.bytes_per_entry()

    def bytes_per_entry(self) -> int:
        """Bytes of one slot's entry: all heads, key and value."""
        if not self.is_initialized:
            return 0
        heads, key_dim = self.keys.shape[1], self.keys.shape[3]
        return int(heads * (key_dim + self.values.shape[3]) * self.keys.element_size())

    def silent(self) -> Tensor | None:
        """Say which active slots must get nothing from this layer's attention, or None for none.

        # (active,) bool
        """
        return None

    def attendable(self) -> Tensor | None:
        """Say which entries each active slot's newest token may attend to, or None for all.

        # (active, 1, 1, longest) bool
        """
        lengths = self.lengths
        longest = max(lengths)
        visible = None
        if min(lengths) < longest:
            ends = self.on_device(lengths)[:, None]
            visible = torch.arange(longest, device=self.keys.device)[None] < ends
        if self.window is not None and self.index is not None and self._reaches_past_window():
            newest = [entry.next_index - 1 for entry in self.entries[: self.active]]
            oldest = self.on_device(newest)[:, None] - self.window
            inside = self.index[: self.active, :longest] > oldest
            visible = inside if visible is None else visible & inside
        return None if visible is None else visible[:, None, None]

    def on_device(self, numbers: list[int]) -> Tensor:
        """Put a number per slot on the device, once per step for all layers: # (active,)."""
        key = (self.keys.device, *numbers)
        if key not in self._memo:
            self._memo[key] = torch.tensor(numbers, device=self.keys.device)
        return self._memo[key]

    def _reaches_past_window(self) -> bool:
        assert self.window is not None
        return any(
            entry.next_index - self.window > entry.oldest for entry in self.entries[: self.active]
        )

    def _describe(self, slot: int, entry: Entries) -> None:
        self.entries[slot] = entry
        if self.index is not None:
            self.index[slot] = entry.indices(self.capacity).to(self.index.device)


class SlotCache(Cache):  # type: ignore[misc]
    """The layers of one engine, and the slots in use."""

    def __init__(
        self,
        slots: int,
        windows: Sequence[int | None],
        *,
        cross_layers: Sequence[int] = (),
        keep_mlp: bool = False,
    ) -> None:
        # Layers mostly agree on their lengths, and each transfer to the device costs a launch.
        self._memo: dict[tuple[object, ...], Tensor] = {}
        super().__init__(
            layers=[
                CrossLayer(keep_mlp)
                if number in cross_layers
                else SlotLayer(slots, window, self._memo)
                for number, window in enumerate(windows)
            ]
        )
        self.slots = slots

    @property
    def active(self) -> int:
        """Number of slots in use."""
        return int(self.layers[0].active)

    def load(self, prefilled: Cache, prompt: int, cross_entries: Tensor | None = None) -> int:
        """Copy a prefilled cache of one sequence into the next free slot; return the slot.

        cross_entries: # (V,) bool, the vision states that cross-attention layers keep.
        """
        slot = self.active
        for layer, source in zip(self.layers, prefilled.layers, strict=True):
            if isinstance(layer, CrossLayer):
                layer.load(slot, source, cross_entries)
            else:
                layer.load(slot, source.keys, source.values, prompt)
            layer.active = slot + 1
        return slot

    def release(self, slot: int) -> int | None:
        """Free a slot; return the slot whose content moved into it, or None.

        The last slot in use fills the hole, so that the slots in use stay 0…n-1.
        """
        last = self.active - 1
        for layer in self.layers:
            if slot != last:
                layer.move(last, slot)
            layer.clear(last)
            layer.active = last
        return last if slot != last else None

    def withdraw(self, slot: int, indices: Tensor) -> int:
        """Take the entries of some sequence indices out of a slot, at every layer.

        indices: # (P,) bool, True where the entry goes; tokens past P stay. Cross-attention layers
        are emptied. Returns the number of entries that went, summed over the layers.
        """
        return sum(layer.withdraw(slot, indices) for layer in self.layers)

    def reserve_step(self) -> None:
        """Start a step: make room for one more entry in every active slot."""
        self._memo.clear()
        for layer in self.layers:
            layer.reserve_step()

    def trim(self) -> None:
        """Give back capacity that no active slot needs, layer by layer.

        New storages are made: a view of the old ones would keep their memory alive.
        """
        for layer in self.layers:
            layer.trim()

    def slot_bytes(self, slot: int) -> int:
        """Bytes of the entries that a slot uses, over all layers."""
        return sum(layer.slot_bytes(slot) for layer in self.layers)

    def allocated_bytes(self) -> int:
        """Bytes of the storages behind the cache, all slots together."""
        return sum(_storage_bytes((layer.keys, layer.values)) for layer in self.layers)

    def check_attended(self) -> None:
        """Check that each layer that was updated has also gone through our attention.

        Raises:
            NotExact: a layer attends by other means, and so without the slots' masks.
        """
        missed = [number for number, layer in enumerate(self.layers) if layer.unattended]
        if missed:
            raise NotExact(f"layers {missed} do not use transformers' attention interface")


def _resized(buffer: Tensor, capacity: int, used: int) -> Tensor:
    """Copy a buffer to another capacity.  # (slots, H, capacity, D)"""
    # Zeros, not garbage: a masked NaN would still poison the sum over the values.
    fresh = buffer.new_zeros(buffer.shape[0], buffer.shape[1], capacity, buffer.shape[3])
    fresh[:, :, :used] = buffer[:, :, :used]
    return fresh


def _storage_bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(0 if tensor is None else tensor.untyped_storage().nbytes() for tensor in tensors)
