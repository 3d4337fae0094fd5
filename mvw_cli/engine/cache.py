"""The KV cache of the engine: slots, each with its own length at every layer.

It stores, grows, compacts and counts bytes. It does not attend (`attention.py`), and it does not
know which entries are vision tokens until it is told which to withdraw.

Slots with vision and slots without are held apart, in one rectangle each: next to a row that still
sees its image, a row that was withdrawn must not keep the width of one. In a batch the slots
without vision come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from mvw_cli.engine.cross_attention import CrossLayer
from mvw_cli.engine.exact import NotExact
from mvw_cli.engine.memory import ran_out
from mvw_cli.engine.parked import Parked, parked
from mvw_cli.engine.rows import CHUNK, ROW_CHUNK, Entries, Memo, Part, Rows

__all__ = ["CHUNK", "SlotCache", "SlotLayer"]


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer that holds sequences: the slots without vision, and those with it."""

    is_compileable = False

    def __init__(self, window: int | None, memo: Memo) -> None:
        super().__init__()
        self.window = window
        """Sliding-window size in tokens, or None for full attention."""
        self.is_sliding = window is not None
        self.is_initialized = False  # transformers looks at `keys` otherwise, and there are none
        self.blind = Rows(window, memo)
        self.seeing = Rows(window, memo)
        self.unattended = False
        """Set by `update`, cleared by the attention function: it must see every update."""
        self._entry_bytes = 0
        self._handed: tuple[Tensor, Tensor] | None = None
        """What the last update returned."""
        self._handed_on: bool | None = None
        """Whether the model hands on to its attention what `update` returns, as it is."""

    # -- what transformers calls ------------------------------------------------------------

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: `load` takes the shapes from what it is given."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append one entry to each slot; return what has to be attended.

        key_states, value_states: # (n, H, 1, D). Returned: # (n, H, longest, D), or something that
        stands for it, where the attention function is known to get it as it is.
        """
        blind, first = self.blind, len(self.blind)
        if first:
            blind.append(key_states[:first], value_states[:first])
        if len(self.seeing):
            self.seeing.append(key_states[first:], value_states[first:])
        self.unattended = True
        if not first or not len(self.seeing):
            self._handed = (blind if first else self.seeing).seen()
        elif self._handed_on:
            self._handed = blind.seen()
        else:
            self._handed = joined(blind.seen(), self.seeing.seen())
        return self._handed

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return max(self.blind.longest, self.seeing.longest) + query_length, 0

    def get_seq_length(self) -> int:
        entries = (*self.blind.entries, *self.seeing.entries)
        return max((entry.next_index for entry in entries), default=0)

    def get_max_length(self) -> int:
        return -1

    # -- what the attention calls -----------------------------------------------------------

    def parts(self, key: Tensor, value: Tensor) -> list[Part]:
        """Split an attention call by the rectangles that its rows lie in.

        Args:
            key, value: as the attention function got them.  # (n, H, longest, D)

        Raises:
            NotExact: the model, which handed on what `update` returns, no longer does.
        """
        self.unattended = False
        blind, seeing, first = self.blind, self.seeing, len(self.blind)
        handed, self._handed = self._handed, None
        if not first or not len(seeing):
            return [Part(0, key, value, blind if first else seeing)]
        as_it_is = handed is not None and key is handed[0] and value is handed[1]
        if self._handed_on and not as_it_is:
            raise NotExact("it changes its way through the cache from step to step")
        if self._handed_on is None:
            self._handed_on = as_it_is
        if as_it_is:
            return [Part(0, *blind.seen(), blind), Part(first, *seeing.seen(), seeing)]
        ends = (blind.longest, seeing.longest)
        return [
            Part(0, key[:first, :, : ends[0]], value[:first, :, : ends[0]], blind),
            Part(first, key[first:, :, : ends[1]], value[first:, :, : ends[1]], seeing),
        ]

    # -- what the cache calls ---------------------------------------------------------------

    def load(
        self,
        source: CacheLayerMixin,
        held: Tensor,
        prompt: int,
        vision: bool,
        cross_entries: Tensor | None,
    ) -> None:
        """Append a row from a layer that holds the prefill of one sequence of `prompt` tokens.

        If memory runs out, nothing has changed. Args:
            held: index in the sequence of the entries that the prefill has read here: # (K,) long.
            cross_entries: not for this kind of layer.
        """
        keys, values = source.keys[0], source.values[0]  # (H, T, D)
        length = keys.shape[1]  # below K where a sliding layer let go of the start
        entry = Entries(held if length == len(held) else held[-length:], prompt, length)
        self._entry_bytes = keys.shape[0] * (keys.shape[2] + values.shape[2]) * keys.element_size()
        (self.seeing if vision else self.blind).load(keys, values, entry)

    def unload(self, vision: bool) -> None:
        """Take the row back that was loaded last."""
        group = self.seeing if vision else self.blind
        group.remove(len(group) - 1)

    def keep_without(self, row: int, indices: Tensor) -> int:
        """Append a copy of a seeing row, without some sequence indices, to the blind rows.

        indices: # (P,) bool, True where the entry goes; tokens past P stay. Returns the number of
        entries that went. If memory runs out, nothing has changed.
        """
        keys, values, entry = self.seeing.row(row)
        places = _staying(entry, indices)
        on_device = places.to(keys.device)
        kept = Entries(entry.indices(entry.length)[places], entry.next_index, len(places))
        self.blind.load(keys[:, on_device], values[:, on_device], kept)
        return entry.length - len(places)

    def thin_out(self, row: int, indices: Tensor, vision: bool) -> int:
        """Take entries out of a row, in place.  indices: as in `keep_without`."""
        group = self.seeing if vision else self.blind
        return group.thin_out(row, _staying(group.entries[row], indices))

    def copied(self, row: int, indices: Tensor, vision: bool) -> Parked:
        """Copy entries of a row to the host.  indices: as in `keep_without`."""
        group = self.seeing if vision else self.blind
        keys, values, entry = group.row(row)
        return parked(keys, values, entry, _leaving(entry, indices))

    def bring_back(self, row: int, back: Parked, vision: bool) -> int:
        """Append a copy of a row to the seeing rows, with entries that were parked.

        Returns their number. If memory runs out, nothing has changed.
        """
        keys, values, entry = (self.seeing if vision else self.blind).row(row)
        keys, values = (
            torch.cat([old, new.to(old.device, non_blocking=True)], dim=1)
            for old, new in ((keys, back.keys), (values, back.values))
        )
        indices = torch.cat([entry.indices(entry.length), back.indices])
        self.seeing.load(keys, values, Entries(indices, entry.next_index, len(indices)))
        return len(back.indices)

    def indices(self, row: int, vision: bool) -> Tensor:
        """Index in the sequence of each entry that was loaded or kept: # (K,) long."""
        return (self.seeing if vision else self.blind).entries[row].kept

    def remove(self, row: int, vision: bool) -> None:
        """Take a row out; the last of its rectangle fills the hole."""
        (self.seeing if vision else self.blind).remove(row)

    def reserve_step(self) -> None:
        """Make room for one more entry in every slot."""
        self.blind.reserve_step()
        self.seeing.reserve_step()

    def trim(self, exactly: bool) -> None:
        """Give back room that no slot needs."""
        self.blind.trim(exactly)
        self.seeing.trim(exactly)

    def lengths(self) -> tuple[list[int], list[int]]:
        return self.blind.lengths, self.seeing.lengths

    def take_back(self, lengths: tuple[list[int], list[int]]) -> None:
        """Go back to lengths that the rows had before a step that failed."""
        self.blind.take_back(lengths[0])
        self.seeing.take_back(lengths[1])
        self.unattended, self._handed = False, None

    def row_bytes(self, row: int, vision: bool) -> int:
        """Bytes of the entries that a row uses."""
        group = self.seeing if vision else self.blind
        return group.entries[row].length * self._entry_bytes

    def room_bytes(
        self, prompt: int, cross: int, vision: bool, ahead: int, counts: Sequence[int], text: int
    ) -> list[int]:
        """Bytes that the storages would take; arguments as in `SlotCache.room_bytes`.

        Args:
            counts: how many have been withdrawn, the last of them just now; one answer for each.
        """
        kept = prompt if self.window is None else min(prompt, self.window - 1)
        blind, seeing = len(self.blind), len(self.seeing)
        ends = [self.blind.longest, self.seeing.longest]
        if prompt:
            blind, seeing = blind + (not vision), seeing + vision
            ends[vision] = max(ends[vision], kept)
        # One more than a step needs: a row is loaded with room for its next entry.
        joined_end = max(ends[0], min(text, ends[1])) + 1
        rooms = []
        for withdrawn in counts:
            end = joined_end if withdrawn else ends[0]
            places = self.blind.room_for(blind + withdrawn, end + ahead)
            places += self.seeing.room_for(seeing, ends[1] + ahead, gone=max(0, withdrawn - 1))
            rooms.append(places * self._entry_bytes)
        return rooms

    def allocated_bytes(self) -> int:
        return self.blind.allocated_bytes() + self.seeing.allocated_bytes()


class SlotCache(Cache):  # type: ignore[misc]
    """The layers of one engine, and the slots in use."""

    def __init__(
        self,
        windows: Sequence[int | None],
        *,
        cross_layers: Sequence[int] = (),
        keep_mlp: bool = False,
    ) -> None:
        # Layers mostly agree on their lengths, and each transfer to the device costs a launch.
        self._memo: Memo = {}
        super().__init__(
            layers=[
                CrossLayer(keep_mlp, self._memo)
                if number in cross_layers
                else SlotLayer(window, self._memo)
                for number, window in enumerate(windows)
            ]
        )
        self._blind: list[int] = []
        self._seeing: list[int] = []
        self._before: list[tuple[list[int], list[int]]] = []

    @property
    def order(self) -> list[int]:
        """The slots in use, in the order of the rows of a batch."""
        return [*self._blind, *self._seeing]

    def load(
        self,
        prefilled: Cache,
        prompt: int,
        *,
        vision: bool,
        cross_entries: Tensor | None = None,
        held: Mapping[int, Tensor] | None = None,
    ) -> int:
        """Copy a prefilled cache of one sequence into a free slot; return the slot.

        If memory runs out, nothing has changed. Args:
            vision: whether any layer holds vision tokens of the sequence.
            cross_entries: the vision states that cross-attention layers keep.  # (V,) bool
            held: by layer, the index in the sequence of the entries that the prefill has read
                there, or for cross-attention which of the vision tokens; all in the layers that
                are not named.  # (K,) long
        """
        done = []
        everything = torch.arange(prompt)  # one for all layers: see `Look`
        try:
            for number, (layer, source) in enumerate(
                zip(self.layers, prefilled.layers, strict=True)
            ):
                chosen = None if held is None else held.get(number)
                if isinstance(layer, SlotLayer) and chosen is None:
                    chosen = everything
                layer.load(source, chosen, prompt, vision, cross_entries)
                done.append(layer)
        except BaseException:
            for layer in done:
                layer.unload(vision)
            self.trim()
            raise
        used = {*self._blind, *self._seeing}
        slot = next(number for number in count() if number not in used)
        (self._seeing if vision else self._blind).append(slot)
        return slot

    def release(self, slot: int) -> None:
        """Free a slot, and the memory that no other needs."""
        row, vision = self._find(slot)
        for layer in self.layers:
            layer.remove(row, vision)
        _fill(self._seeing if vision else self._blind, row)
        self.trim()

    def withdraw(self, slot: int, indices: Sequence[Tensor], *, complete: bool = True) -> int:
        """Take the entries of some sequence indices out of a slot.

        indices: by layer, True where the entry goes: # (P,) bool, tokens past P stay; or # (N,)
        bool, vision tokens of a cross-attention layer. `complete`: these are all the vision that
        is left, and the slot counts as one without from here on. Returns the number of entries
        that went, summed over the layers. If memory runs out in a complete withdrawal of a slot
        with vision, nothing has changed.
        """
        row, vision = self._find(slot)
        pairs = list(zip(self.layers, indices, strict=True))
        if not vision or not complete:
            gone: int = sum(layer.thin_out(row, one, vision) for layer, one in pairs)
            self.trim()
            return gone
        gone, done = 0, []
        try:
            for layer, one in pairs:
                gone += layer.keep_without(row, one)
                done.append(layer)
        except BaseException:
            for layer in done:
                layer.unload(vision=False)
            self.trim()
            raise
        for layer in self.layers:
            layer.remove(row, vision=True)
        _fill(self._seeing, row)
        self._blind.append(slot)
        self.trim()
        return gone

    def copied(self, slot: int, indices: Sequence[Tensor]) -> list[Parked]:
        """Copy entries of a slot to the host; arguments as in `withdraw`."""
        row, vision = self._find(slot)
        pairs = zip(self.layers, indices, strict=True)
        return [layer.copied(row, one, vision) for layer, one in pairs]

    def bring_back(self, slot: int, back: Sequence[Parked]) -> int:
        """Put entries that `copied` has copied back into a slot, which sees from here on.

        Returns their number, summed over the layers. If memory runs out, nothing has changed.
        """
        row, vision = self._find(slot)
        done: list[SlotLayer | CrossLayer] = []
        came = 0
        try:
            for layer, one in zip(self.layers, back, strict=True):
                came += layer.bring_back(row, one, vision)
                done.append(layer)
        except BaseException:
            for layer in done:
                layer.unload(vision=True)
            self.trim()
            raise
        for layer in self.layers:
            layer.remove(row, vision)
        self._seeing.append(slot)
        _fill(self._seeing if vision else self._blind, row)
        self.trim()
        return came

    def indices(self, slot: int) -> list[Tensor]:
        """By layer, which entries were loaded or kept: index in the sequence, or for
        cross-attention which vision token.  # (K,) long, on the host"""
        row, vision = self._find(slot)
        return [layer.indices(row, vision) for layer in self.layers]

    def reserve_step(self) -> None:
        """Start a step: make room for one more entry in every slot."""
        self._memo.clear()
        self._before = [layer.lengths() for layer in self.layers]
        for layer in self.layers:
            layer.reserve_step()

    def undo_step(self) -> None:
        """Forget what a step that failed has appended."""
        for layer, lengths in zip(self.layers, self._before, strict=True):
            layer.take_back(lengths)

    def trim(self, exactly: bool = False) -> None:
        """Give back room that no slot needs, layer by layer, with new storages.

        Where there is no memory for these, the room is kept. Args:
            exactly: whether to give back, too, what is kept for a few slots to come.
        """
        try:
            for layer in self.layers:
                layer.trim(exactly)
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise

    def slot_bytes(self, slot: int) -> int:
        """Bytes of the entries that a slot uses, over all layers."""
        row, vision = self._find(slot)
        return sum(layer.row_bytes(row, vision) for layer in self.layers)

    def used_bytes(self) -> int:
        """Bytes of the entries that all slots use."""
        return sum(self.slot_bytes(slot) for slot in self.order)

    def allocated_bytes(self) -> int:
        """Bytes of the storages behind the cache, all slots together."""
        return sum(layer.allocated_bytes() for layer in self.layers)

    def room_bytes(
        self,
        *,
        prompt: int = 0,
        cross: int = 0,
        vision: bool = False,
        ahead: int = 1,
        text: int | None = None,
    ) -> int:
        """Bytes that the storages would take `ahead` steps from now, nothing being released.

        Args:
            prompt: length of a further sequence that is loaded now; 0 for none.
            cross: number of its vision states that cross-attention layers keep.
            vision: whether that one holds vision tokens.
            text: the longest that a sequence with vision would be without it. Where given, the
                answer is the most that the storages take while one after the other is withdrawn.
        """
        seeing = len(self._seeing) + (vision and prompt > 0)
        counts = [0] if text is None else _turning_points(seeing)
        rooms: list[list[int]] = [
            layer.room_bytes(prompt, cross, vision, ahead, counts, text or 0)
            for layer in self.layers
        ]
        return max(map(sum, zip(*rooms, strict=True)))

    def check_attended(self) -> None:
        """Check that each layer that was updated has also gone through our attention.

        Raises:
            NotExact: a layer attends by other means, and so without the slots' masks.
        """
        missed = [number for number, layer in enumerate(self.layers) if layer.unattended]
        if missed:
            raise NotExact(f"layers {missed} do not use transformers' attention interface")

    def _find(self, slot: int) -> tuple[int, bool]:
        """Say in which row a slot lies, and whether among those with vision."""
        if slot in self._seeing:
            return self._seeing.index(slot), True
        return self._blind.index(slot), False


def _turning_points(seeing: int) -> list[int]:
    """Say after how many withdrawals the room may be largest: it goes up and down evenly between.

    Storages hold rows in steps of `ROW_CHUNK`, and trim them in such steps.
    """
    counts = range(seeing + 1)
    edge = 2 * ROW_CHUNK + 1
    return [*counts] if len(counts) <= 2 * edge else [*counts[:edge], *counts[-edge:]]


def joined(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Put two rectangles into one, as wide as the wider.  # (n, H, T, D) each"""
    width = max(one[0].shape[2], other[0].shape[2])
    keys, values = (
        torch.cat([_widened(states, width) for states in pair])
        for pair in zip(one, other, strict=True)
    )
    return keys, values


def _widened(states: Tensor, width: int) -> Tensor:
    # Zeros, not garbage: a masked NaN would still poison the sum over the values.
    return torch.nn.functional.pad(states, (0, 0, 0, width - states.shape[2]))


def _leaving(entry: Entries, indices: Tensor) -> Tensor:
    """Say which places of a row go, if some sequence indices go: # (K,) long."""
    return _goes(entry, indices).nonzero()[:, 0]


def _staying(entry: Entries, indices: Tensor) -> Tensor:
    """Say which places of a row stay, if some sequence indices go: # (K,) long."""
    return (~_goes(entry, indices)).nonzero()[:, 0]


def _goes(entry: Entries, indices: Tensor) -> Tensor:
    present = entry.indices(entry.length)
    prompt = present < len(indices)
    leaves = torch.zeros(entry.length, dtype=torch.bool)
    leaves[prompt] = indices[present[prompt]]
    return leaves


def _fill(slots: list[int], row: int) -> None:
    """Take a row out as `Rows.remove` does."""
    slots[row] = slots[-1]
    slots.pop()
