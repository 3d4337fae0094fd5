"""Rows of cache entries of different length in one buffer: what a batched attention call reads.

A `Rows` is one rectangle, as wide as its longest row. It appends, removes, grows and shrinks, and
counts its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 128
"""Capacity, in entries, comes in multiples of this: each growth copies the buffer once."""
ROW_CHUNK = 4
"""Above this many rows, room for rows comes in multiples of it."""

Memo = dict[tuple[object, ...], Tensor]
"""Small tensors that the layers of one step share; each transfer to a device costs a launch."""


@dataclass(frozen=True, slots=True)
class Span:
    """How far back the tokens of a layer see, where that is not to the start."""

    size: int
    """In tokens."""
    chunked: bool = False
    """Whether the sequence is cut into chunks that each see themselves alone; else every token
    sees a window that slides with it."""

    def first(self, newest: int) -> int:
        """Return the lowest index in the sequence that the token at index `newest` may see."""
        if self.chunked:
            return newest // self.size * self.size
        return newest - self.size + 1


@dataclass(slots=True)
class Entries:
    """Which sequence positions the entries of one row stand for.

    Entries are never renumbered: after a withdrawal the remaining ones keep the index they had.
    Each key was rotated by its position when it was made, and attention is a sum over the entries,
    so where in the buffer an entry lies counts for nothing: compaction may move entries, and what
    is restored goes to the end. Only a sliding window or a chunk has to look the index up.
    """

    kept: Tensor
    """Index in the sequence of the entries that were loaded or kept.  # (K,) long, on the host"""
    following: int
    """Index of the first entry appended since; the ones after it follow on."""
    length: int
    """Entries in use: K and those appended."""
    had_vision: bool = True
    """At a cross-attention layer, whether the row has ever held any vision."""

    @property
    def next_index(self) -> int:
        """Index in the sequence of the next token to be appended."""
        return self.following + self.length - len(self.kept)

    def indices(self, capacity: int) -> Tensor:
        """Index in the sequence of every place of the row, those not yet filled included.

        # (capacity,) long
        """
        after = torch.arange(capacity - len(self.kept)) + self.following
        return torch.cat([self.kept, after])

    def among(self, indices: Tensor) -> Tensor:
        """Mark the entries that stand for some sequence indices: # (length,) bool.

        indices: # (P,) bool; what lies past its end is not among them.
        """
        own = self.indices(self.length)
        inside = own < len(indices)
        found = torch.zeros(self.length, dtype=torch.bool)
        found[inside] = indices[own[inside]]
        return found

    def kept_at(self, places: Tensor) -> Entries:
        """Return what is left where only some places are kept: # (K,) long."""
        return Entries(self.indices(self.length)[places], self.next_index, len(places))


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The rows of a batched attention call that lie in one rectangle."""

    first: int
    """The part's first row in the batch."""
    keys: Tensor
    """# (rows, H, longest, D)"""
    values: Tensor
    rows: Rows
    places: Sequence[Tensor] | None = None
    """By row, the places that a policy has left in `keys` and `values`; None for all.
    # (K,) long, on the host"""
    visible: Tensor | None = None
    """As `Rows.attendable`, of these places."""

    @property
    def lengths(self) -> list[int]:
        """Entries that are attended to, row by row."""
        return self.rows.lengths if self.places is None else list(map(len, self.places))

    def attendable(self) -> Tensor | None:
        """Mark which entries each row's newest token may attend to; None for all.

        # (rows, 1, 1, longest) bool
        """
        return self.rows.attendable() if self.places is None else self.visible


class Rows:
    """Keys and values of some rows at one layer: # (row capacity, H, capacity, D).

    D of the two may differ. Args:
        span: of the layer's attention; None: to the start.
    """

    def __init__(self, span: Span | None, memo: Memo) -> None:
        self.span = span
        self._memo = memo
        self.entries: list[Entries] = []
        self.states: tuple[Tensor, ...] = ()
        """Keys and values; empty as long as their shape is not known, or no row is there."""
        self._appended = False
        self._index: Tensor | None = None
        """Index in the sequence of each place, where the layer has a span.
        # (row capacity, capacity)"""

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def lengths(self) -> list[int]:
        """Entries in use, row by row."""
        return [entry.length for entry in self.entries]

    @property
    def longest(self) -> int:
        return max((entry.length for entry in self.entries), default=0)

    @property
    def capacity(self) -> int:
        """Entries that a row has room for."""
        return int(self.states[0].shape[2]) if self.states else 0

    @property
    def row_capacity(self) -> int:
        """Rows that there is room for."""
        return int(self.states[0].shape[0]) if self.states else 0

    def seen(self) -> tuple[Tensor, Tensor]:
        """Return views of what has to be attended to: # (rows, H, longest, D)."""
        rows, longest = len(self), self.longest
        keys, values = self.states
        return keys[:rows, :, :longest], values[:rows, :, :longest]

    # -- rows come and go -------------------------------------------------------------------

    def load(self, keys: Tensor, values: Tensor, entry: Entries) -> None:
        """Append a row.  keys, values: # (H, T, D)

        If memory runs out, nothing has changed.
        """
        row, length = len(self), keys.shape[1]
        self._hold(row + 1, max(self.longest, length) + 1, like=(keys, values))
        for buffer, new in zip(self.states, (keys, values), strict=True):
            buffer[row, :, :length] = new
        self.entries.append(entry)
        self._describe(row)

    def load_nothing(self, had_vision: bool = True) -> None:
        """Append a row without any entry, whose shape may not be known yet.

        If memory runs out, nothing has changed.
        """
        if self.states:
            self._hold(len(self) + 1, self.longest)
        self.entries.append(Entries(torch.zeros(0, dtype=torch.long), 0, 0, had_vision))

    def row(self, row: int) -> tuple[Tensor, Tensor]:
        """Return views of the keys and values of a row's entries: # (H, T, D)."""
        (keys, values), length = self.states, self.entries[row].length
        return keys[row, :, :length], values[row, :, :length]

    def remove(self, row: int) -> None:
        """Take a row out; the last row fills the hole."""
        last = len(self) - 1
        if row != last:
            entry = self.entries[row] = self.entries[last]
            for buffer in self.states:
                buffer[row, :, : entry.length] = buffer[last, :, : entry.length]
            self._describe(row)
        self.entries.pop()

    def prune(self, row: int, leaving: Tensor) -> int:
        """Take entries out of a row, those that stay moved together; return how many went.

        leaving: by index in the sequence, # (P,) bool; tokens past P stay.
        """
        entry = self.entries[row]
        places = (~entry.among(leaving)).nonzero()[:, 0]
        gone = entry.length - len(places)
        if gone:
            for states in self.row(row):
                # Indexing copies: safe from the writes.
                states[:, : len(places)] = states[:, places.to(states.device)]
            self.entries[row] = entry.kept_at(places)
            self._describe(row)
        return gone

    def offload(self, row: int, leaving: Tensor) -> Offloaded:
        """Copy entries of a row to the host; arguments as in `prune`."""
        if not self.states:  # cross-attention rows without any entry
            return Offloaded.nothing()
        entry = self.entries[row]
        places = entry.among(leaving).nonzero()[:, 0]
        keys, values = (_on_host(one[:, places.to(one.device)]) for one in self.row(row))
        return Offloaded(keys, values, entry.indices(entry.length)[places])

    # -- entries come -----------------------------------------------------------------------

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Append one entry to each row; `reserve_step` has made the room.

        keys, values: # (rows, H, 1, D)
        """
        rows, lengths = len(self), self.lengths
        pairs = zip(self.states, (keys, values), strict=True)
        first = lengths[0]
        if max(lengths) == min(lengths):
            for buffer, new in pairs:
                buffer[:rows, :, first : first + 1] = new
        else:
            row, place = torch.arange(rows, device=keys.device), self.on_device(lengths)
            for buffer, new in pairs:
                buffer[row, :, place] = new[:, :, 0]
        for entry in self.entries:
            entry.length += 1
        self._appended = True

    def rollback(self) -> None:
        """Forget what has been appended since `reserve_step`, after a step that failed."""
        if self._appended:
            for entry in self.entries:
                entry.length -= 1
        self._appended = False

    # -- room -------------------------------------------------------------------------------

    def reserve_step(self) -> None:
        """Begin a step: make room for one more entry in every row."""
        self._appended = False
        if self.entries:
            self._hold(len(self), self.longest + 1)

    def trim(self) -> None:
        """Give back room that no row needs, with new storages: a view would keep the old alive."""
        if not self.entries:
            self.states, self._index = (), None
            return
        rows, capacity = _trimmed(self.row_capacity, len(self)), _room(self.longest + 1)
        if capacity < self.capacity or rows < self.row_capacity:
            self._resize(rows, min(capacity, self.capacity))

    def room_for(self, rows: int, longest: int, gone: int = 0) -> int:
        """Places (rows times entries) that `rows` rows would take, the longest of that length.

        Args:
            gone: so many of them have left since.
        """
        if not rows:
            return 0
        room = max(_row_room(rows), self.row_capacity)
        if gone:
            room = _trimmed(room, rows - gone)
        return room * max(_room(longest), self.capacity)

    def allocated_bytes(self) -> int:
        """Bytes of the storages behind the rows."""
        return sum(one.untyped_storage().nbytes() for one in self.states)

    # -- what the attention needs -----------------------------------------------------------

    def attendable(self) -> Tensor | None:
        """Mark which entries each row's newest token may attend to; None for all.

        # (rows, 1, 1, longest) bool
        """
        lengths = self.lengths
        longest = max(lengths)
        visible = None
        if min(lengths) < longest:
            ends = self.on_device(lengths)[:, None]
            visible = torch.arange(longest, device=ends.device)[None] < ends
        if self._index is not None and self.span is not None:
            # By position, not by place: once entries have left the middle, the last places of a
            # window reach further back than as many positions.
            first = [max(0, self.span.first(entry.next_index - 1)) for entry in self.entries]
            if any(first):
                inside = self._index[: len(self), :longest] >= self.on_device(first)[:, None]
                visible = inside if visible is None else visible & inside
        return None if visible is None else visible[:, None, None]

    def on_device(self, numbers: list[int]) -> Tensor:
        """Put a number per row on the device, once per step for all layers: # (rows,)."""
        device = self.states[0].device
        key = (device, *numbers)
        if key not in self._memo:
            self._memo[key] = torch.tensor(numbers, device=device)
        return self._memo[key]

    # -- storages ---------------------------------------------------------------------------

    def _hold(self, rows: int, longest: int, like: tuple[Tensor, Tensor] | None = None) -> None:
        if not self.states and like is not None:
            used = len(self)
            self.states = tuple(one.new_empty(used, len(one), 0, one.shape[2]) for one in like)
        if rows > self.row_capacity or longest > self.capacity:
            rows = max(_row_room(rows), self.row_capacity)
            self._resize(rows, max(_room(longest), self.capacity))

    def _resize(self, rows: int, capacity: int) -> None:
        used, longest = len(self), min(self.longest, capacity)
        fresh = []
        for old in self.states:
            # Zeros, not garbage: a masked NaN would still poison the sum over the values.
            new = old.new_zeros(rows, old.shape[1], capacity, old.shape[3])
            new[:used, :, :longest] = old[:used, :, :longest]
            fresh.append(new)
        # Neither is put in place before both are there: a lack of memory in between must leave the
        # rows as they were.
        self.states = tuple(fresh)
        if self.span is not None:
            index = torch.zeros(rows, capacity, dtype=torch.long)
            for row, entry in enumerate(self.entries):
                index[row] = entry.indices(capacity)
            self._index = index.to(self.states[0].device)

    def _describe(self, row: int) -> None:
        if self._index is not None:
            self._index[row] = self.entries[row].indices(self.capacity).to(self._index.device)


@dataclass(frozen=True, slots=True, eq=False)
class Offloaded:
    """Entries of one row at one layer, copied to host memory so that they can be restored."""

    keys: Tensor
    """# (H, K, D), on the host"""
    values: Tensor
    indices: Tensor
    """Index in the sequence of each.  # (K,) long, on the host"""

    @classmethod
    def nothing(cls) -> Offloaded:
        """Return a copy of no entry."""
        return cls(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.long))

    @property
    def bytes(self) -> int:
        """Bytes of keys and values."""
        return int(self.keys.nbytes + self.values.nbytes)

    def with_more(self, other: Offloaded) -> Offloaded:
        """Add entries that were offloaded later."""
        if not len(self.indices) or not len(other.indices):
            return self if len(self.indices) else other
        return Offloaded(
            torch.cat([self.keys, other.keys], dim=1),
            torch.cat([self.values, other.values], dim=1),
            torch.cat([self.indices, other.indices]),
        )


def _on_host(states: Tensor) -> Tensor:
    # Pinned where there is a CUDA device, so that it comes back by a direct transfer.
    if states.device.type != "cuda":
        return states.to("cpu")
    host = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
    return host.copy_(states)


def _room(length: int) -> int:
    return -(-length // CHUNK) * CHUNK


def _row_room(rows: int) -> int:
    return rows if rows <= ROW_CHUNK else -(-rows // ROW_CHUNK) * ROW_CHUNK


def _trimmed(room: int, rows: int) -> int:
    """Return how much of the room for rows is kept for so many."""
    # A few rows more or less come and go all the time; not each is worth a copy.
    tight = _row_room(rows)
    return room if room - tight < ROW_CHUNK and rows > 1 else tight
