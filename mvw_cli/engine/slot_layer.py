"""One layer of the KV cache that holds sequences.

Rows with vision and rows without are held apart, in one rectangle each: next to a row that still
sees its image, a row that was withdrawn must not keep the width of one. In a batch the rows without
vision come first. It does not know slots, nor which entries are vision tokens until it is told.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from mvw_cli.engine.exact import NotExact
from mvw_cli.engine.rows import Entries, Memo, Offloaded, Part, Rows, offload


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer that holds sequences: the slots without vision, and those with it."""

    is_compileable = False

    def __init__(self, window: int | None, memo: Memo) -> None:
        super().__init__()
        self.window = window
        """Sliding-window size in tokens, or None for full attention."""
        self.is_sliding = window is not None
        self.is_initialized = False  # transformers looks at `keys` otherwise, and there are none
        self.withdrawn = Rows(window, memo)
        self.with_vision = Rows(window, memo)
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
        withdrawn, first = self.withdrawn, len(self.withdrawn)
        if first:
            withdrawn.append(key_states[:first], value_states[:first])
        if len(self.with_vision):
            self.with_vision.append(key_states[first:], value_states[first:])
        self.unattended = True
        if not first or not len(self.with_vision):
            self._handed = (withdrawn if first else self.with_vision).seen()
        elif self._handed_on:
            self._handed = withdrawn.seen()
        else:
            self._handed = joined(withdrawn.seen(), self.with_vision.seen())
        return self._handed

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return max(self.withdrawn.longest, self.with_vision.longest) + query_length, 0

    def get_seq_length(self) -> int:
        entries = (*self.withdrawn.entries, *self.with_vision.entries)
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
        withdrawn, with_vision, first = self.withdrawn, self.with_vision, len(self.withdrawn)
        handed, self._handed = self._handed, None
        if not first or not len(with_vision):
            return [Part(0, key, value, withdrawn if first else with_vision)]
        as_it_is = handed is not None and key is handed[0] and value is handed[1]
        if self._handed_on and not as_it_is:
            raise NotExact("it changes its way through the cache from step to step")
        if self._handed_on is None:
            self._handed_on = as_it_is
        if as_it_is:
            return [
                Part(0, *withdrawn.seen(), withdrawn),
                Part(first, *with_vision.seen(), with_vision),
            ]
        ends = (withdrawn.longest, with_vision.longest)
        return [
            Part(0, key[:first, :, : ends[0]], value[:first, :, : ends[0]], withdrawn),
            Part(first, key[first:, :, : ends[1]], value[first:, :, : ends[1]], with_vision),
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
        (self.with_vision if vision else self.withdrawn).load(keys, values, entry)

    def unload(self, vision: bool) -> None:
        """Take the row back that was loaded last."""
        group = self.with_vision if vision else self.withdrawn
        group.remove(len(group) - 1)

    def keep_without(self, row: int, indices: Tensor) -> int:
        """Append a copy of a with-vision row, without some sequence indices, to the withdrawn rows.

        indices: # (P,) bool, True where the entry goes; tokens past P stay. Returns the number of
        entries that went. If memory runs out, nothing has changed.
        """
        keys, values, entry = self.with_vision.row(row)
        places = _staying(entry, indices)
        on_device = places.to(keys.device)
        kept = Entries(entry.indices(entry.length)[places], entry.next_index, len(places))
        self.withdrawn.load(keys[:, on_device], values[:, on_device], kept)
        return entry.length - len(places)

    def prune(self, row: int, indices: Tensor, vision: bool) -> int:
        """Take entries out of a row, in place.  indices: as in `keep_without`."""
        group = self.with_vision if vision else self.withdrawn
        return group.prune(row, _staying(group.entries[row], indices))

    def copied(self, row: int, indices: Tensor, vision: bool) -> Offloaded:
        """Copy entries of a row to the host.  indices: as in `keep_without`."""
        group = self.with_vision if vision else self.withdrawn
        keys, values, entry = group.row(row)
        return offload(keys, values, entry, _leaving(entry, indices))

    def restore(self, row: int, back: Offloaded, vision: bool) -> int:
        """Append a copy of a row to the with-vision rows, with entries that were offloaded.

        Returns their number. If memory runs out, nothing has changed.
        """
        keys, values, entry = (self.with_vision if vision else self.withdrawn).row(row)
        keys, values = (
            torch.cat([old, new.to(old.device, non_blocking=True)], dim=1)
            for old, new in ((keys, back.keys), (values, back.values))
        )
        indices = torch.cat([entry.indices(entry.length), back.indices])
        self.with_vision.load(keys, values, Entries(indices, entry.next_index, len(indices)))
        return len(back.indices)

    def indices(self, row: int, vision: bool) -> Tensor:
        """Index in the sequence of each entry that was loaded or kept: # (K,) long."""
        return (self.with_vision if vision else self.withdrawn).entries[row].kept

    def remove(self, row: int, vision: bool) -> None:
        """Take a row out; the last of its rectangle fills the hole."""
        (self.with_vision if vision else self.withdrawn).remove(row)

    def reserve_step(self) -> None:
        """Make room for one more entry in every slot."""
        self.withdrawn.reserve_step()
        self.with_vision.reserve_step()

    def trim(self, exactly: bool) -> None:
        """Give back room that no slot needs."""
        self.withdrawn.trim(exactly)
        self.with_vision.trim(exactly)

    def lengths(self) -> tuple[list[int], list[int]]:
        return self.withdrawn.lengths, self.with_vision.lengths

    def rollback(self, lengths: tuple[list[int], list[int]]) -> None:
        """Go back to lengths that the rows had before a step that failed."""
        self.withdrawn.rollback(lengths[0])
        self.with_vision.rollback(lengths[1])
        self.unattended, self._handed = False, None

    def row_bytes(self, row: int, vision: bool) -> int:
        """Bytes of the entries that a row uses."""
        group = self.with_vision if vision else self.withdrawn
        return group.entries[row].length * self._entry_bytes

    def room_bytes(
        self, prompt: int, cross: int, vision: bool, ahead: int, counts: Sequence[int], text: int
    ) -> list[int]:
        """Bytes that the storages would take; arguments as in `SlotCache.room_bytes`.

        Args:
            counts: how many have been withdrawn, the last of them just now; one answer for each.
        """
        kept = prompt if self.window is None else min(prompt, self.window - 1)
        withdrawn, with_vision = len(self.withdrawn), len(self.with_vision)
        ends = [self.withdrawn.longest, self.with_vision.longest]
        if prompt:
            withdrawn, with_vision = withdrawn + (not vision), with_vision + vision
            ends[vision] = max(ends[vision], kept)
        # One more than a step needs: a row is loaded with room for its next entry.
        joined_end = max(ends[0], min(text, ends[1])) + 1
        rooms = []
        for more in counts:
            end = joined_end if more else ends[0]
            places = self.withdrawn.room_for(withdrawn + more, end + ahead)
            places += self.with_vision.room_for(with_vision, ends[1] + ahead, gone=max(0, more - 1))
            rooms.append(places * self._entry_bytes)
        return rooms

    def allocated_bytes(self) -> int:
        return self.withdrawn.allocated_bytes() + self.with_vision.allocated_bytes()


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
