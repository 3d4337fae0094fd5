"""One layer of the KV cache: rows with vision and rows without are held apart.

They lie in one rectangle each, because a withdrawn row next to one with vision must not keep the
width of an image. In a batch the rows without vision come first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from mvw_cli.engine.exact import NotExact
from mvw_cli.engine.rows import Entries, Memo, Offloaded, Part, Rows, offload


class KVLayer(CacheLayerMixin):  # type: ignore[misc]
    """What every layer of a `SlotCache` has: two groups of rows, one row for each slot in use."""

    is_compileable = False
    unattended = False

    def __init__(self, window: int | None, memo: Memo) -> None:
        super().__init__()
        self.window = window
        """Sliding-window size in tokens, or None for full attention."""
        self.is_sliding = window is not None
        self.is_initialized: bool = False  # transformers looks at `keys` otherwise
        self.withdrawn = Rows(window, memo)
        self.with_vision = Rows(window, memo)
        self._entry_bytes = 0

    def get_max_length(self) -> int:
        return -1

    def group(self, vision: bool) -> Rows:
        """Return the rows with vision, or those without."""
        return self.with_vision if vision else self.withdrawn

    def unload(self, vision: bool) -> None:
        """Take the row out that was loaded last."""
        self.remove(len(self.group(vision)) - 1, vision)

    def remove(self, row: int, vision: bool) -> None:
        """Take a row out; the last of its group fills the hole."""
        self.group(vision).remove(row)

    def indices(self, row: int, vision: bool) -> Tensor:
        """Return what each entry that was loaded or kept stands for: # (K,) long.

        Its index in the sequence, or at a cross-attention layer its number as a vision token.
        """
        return self.group(vision).entries[row].kept

    def reserve_step(self) -> None:
        """Make room for one more entry in every slot."""
        self.withdrawn.reserve_step()
        self.with_vision.reserve_step()

    def lengths(self) -> tuple[list[int], list[int]]:
        return self.withdrawn.lengths, self.with_vision.lengths

    def rollback(self, lengths: tuple[list[int], list[int]]) -> None:
        """Go back to lengths that the rows had before a step that failed."""
        self.withdrawn.rollback(lengths[0])
        self.with_vision.rollback(lengths[1])

    def trim(self, exactly: bool) -> None:
        """Give back room that no slot needs."""
        self.withdrawn.trim(exactly)
        self.with_vision.trim(exactly)

    def row_bytes(self, row: int, vision: bool) -> int:
        """Bytes of the entries that a row uses."""
        return self.group(vision).entries[row].length * self._entry_bytes

    def allocated_bytes(self) -> int:
        return self.withdrawn.allocated_bytes() + self.with_vision.allocated_bytes()

    def _measure(self, keys: Tensor, values: Tensor) -> None:
        """Note how wide an entry is.  keys, values: # (1, H, T, D)"""
        self._entry_bytes = keys.shape[1] * (keys.shape[3] + values.shape[3]) * keys.element_size()


class SlotLayer(KVLayer):
    """One self-attention layer."""

    def __init__(self, window: int | None, memo: Memo) -> None:
        super().__init__(window, memo)
        self.unattended = False
        """Set by `update`, cleared by the attention function: it must see every update."""
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
        held: Tensor | None,
        prompt: int,
        vision: bool,
        cross_entries: Tensor | None,
    ) -> None:
        """Append a row from a layer that holds the prefill of one sequence of `prompt` tokens.

        If memory runs out, nothing has changed. Args:
            held: index in the sequence of the entries that the prefill has read here: # (K,) long.
            cross_entries: not for this kind of layer.
        """
        assert held is not None
        keys, values = source.keys[0], source.values[0]  # (H, T, D)
        length = keys.shape[1]  # below K where a sliding layer let go of the start
        entry = Entries(held if length == len(held) else held[-length:], prompt, length)
        self._measure(source.keys, source.values)
        self.group(vision).load(keys, values, entry)

    def withdraw(self, row: int, leaving: Tensor) -> int:
        """Append a copy of a with-vision row, without some entries, to the withdrawn rows.

        leaving: by index in the sequence, # (P,) bool; tokens past P stay. Returns the number of
        entries that went. If memory runs out, nothing has changed.
        """
        keys, values, entry = self.with_vision.row(row)
        places = (~_leave(entry, leaving)).nonzero()[:, 0]
        on_device = places.to(keys.device)
        kept = Entries(entry.indices(entry.length)[places], entry.next_index, len(places))
        self.withdrawn.load(keys[:, on_device], values[:, on_device], kept)
        return entry.length - len(places)

    def prune(self, row: int, leaving: Tensor, vision: bool) -> int:
        """Take entries out of a row, in place.  leaving: as in `withdraw`"""
        group = self.group(vision)
        return group.prune(row, (~_leave(group.entries[row], leaving)).nonzero()[:, 0])

    def offload(self, row: int, leaving: Tensor, vision: bool) -> Offloaded:
        """Copy entries of a row to the host.  leaving: as in `withdraw`"""
        keys, values, entry = self.group(vision).row(row)
        return offload(keys, values, entry, _leave(entry, leaving).nonzero()[:, 0])

    def restore(self, row: int, back: Offloaded, vision: bool) -> int:
        """Append a copy of a row, with its offloaded entries, to the with-vision rows.

        Returns their number. If memory runs out, nothing has changed.
        """
        keys, values, entry = self.group(vision).row(row)
        # Behind the text that they once stood before; see `Entries` on why that is the same.
        keys, values = (
            torch.cat([old, new.to(old.device, non_blocking=True)], dim=1)
            for old, new in ((keys, back.keys), (values, back.values))
        )
        indices = torch.cat([entry.indices(entry.length), back.indices])
        self.with_vision.load(keys, values, Entries(indices, entry.next_index, len(indices)))
        return len(back.indices)

    def rollback(self, lengths: tuple[list[int], list[int]]) -> None:
        super().rollback(lengths)
        self.unattended, self._handed = False, None

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


def joined(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Put two rectangles into one, as wide as the wider.  # (n, H, T, D) each"""
    width = max(one[0].shape[2], other[0].shape[2])
    # Zeros, not garbage: a masked NaN would still poison the sum over the values.
    keys, values = (
        torch.cat(
            [torch.nn.functional.pad(states, (0, 0, 0, width - states.shape[2])) for states in pair]
        )
        for pair in zip(one, other, strict=True)
    )
    return keys, values


def _leave(entry: Entries, leaving: Tensor) -> Tensor:
    """Mark which entries of a row go, if some sequence indices go: # (length,) bool."""
    present = entry.indices(entry.length)
    prompt = present < len(leaving)
    leaves = torch.zeros(entry.length, dtype=torch.bool)
    leaves[prompt] = leaving[present[prompt]]
    return leaves
