"""The KV cache of the engine: slots, each with its own length at every layer.

Here is in which row a slot lies; the layers (`layers.py`) store, grow, compact and count bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from mvw_cli.engine.layers import CrossLayer, KVLayer, SlotLayer
from mvw_cli.engine.memory import ran_out
from mvw_cli.engine.rows import ROW_CHUNK, Memo, Offloaded
from mvw_cli.engine.types import NotExact


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
        self._slots: tuple[list[int], list[int]] = [], []
        """By row, of the group without vision and of that with it."""

    @property
    def order(self) -> list[int]:
        """The slots in use, in the order of the rows of a batch."""
        return [*self._slots[False], *self._slots[True]]

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
        everything = torch.arange(prompt)  # one tensor for all layers: `per_layer` tells by it

        def load(number: int, layer: KVLayer) -> None:
            default = everything if isinstance(layer, SlotLayer) else None
            chosen = (held or {}).get(number, default)
            layer.load(prefilled.layers[number], chosen, prompt, vision, cross_entries)

        self._append(vision, load)
        slot = next(number for number in count() if number not in self.order)
        self._slots[vision].append(slot)
        return slot

    def release(self, slot: int) -> None:
        """Free a slot, and the memory that no other needs."""
        row, vision = self._find(slot)
        self._remove(row, vision)
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
        if not vision or not complete:
            # In place: the row stays among its own, with or without vision.
            pairs = zip(self.layers, indices, strict=True)
            gone: int = sum(layer.groups[vision].prune(row, one) for layer, one in pairs)
            self.trim()
            return gone
        # What stays is copied over to the rows without vision before the row goes. Layers need not
        # agree on what they hold: each masks by its own lengths.
        gone = self._append(False, lambda number, layer: layer.withdraw(row, indices[number]))
        self._remove(row, vision=True)
        self._slots[False].append(slot)
        self.trim()
        return gone

    def offload(self, slot: int, indices: Sequence[Tensor]) -> list[Offloaded]:
        """Copy entries of a slot to the host; arguments as in `withdraw`."""
        row, vision = self._find(slot)
        pairs = zip(self.layers, indices, strict=True)
        return [layer.groups[vision].offload(row, one) for layer, one in pairs]

    def restore(self, slot: int, back: Sequence[Offloaded]) -> int:
        """Put entries that `offload` has copied back into a slot, which has vision from here on.

        Returns their number, summed over the layers. If memory runs out, nothing has changed.
        """
        row, vision = self._find(slot)
        came = self._append(True, lambda number, layer: layer.restore(row, back[number], vision))
        self._slots[True].append(slot)
        self._remove(row, vision)
        self.trim()
        return came

    def indices(self, slot: int) -> list[Tensor]:
        """By layer, which entries were loaded or kept: index in the sequence, or for
        cross-attention which vision token.  # (K,) long, on the host"""
        row, vision = self._find(slot)
        return [layer.groups[vision].entries[row].kept for layer in self.layers]

    def reserve_step(self) -> None:
        """Start a step: make room for one more entry in every slot."""
        self._memo.clear()
        for layer in self.layers:
            for rows in layer.groups:
                rows.reserve_step()

    def undo_step(self) -> None:
        """Forget what a step that failed has appended."""
        for layer in self.layers:
            layer.handed = None  # a view, or a copy: its storage is needed elsewhere
            for rows in layer.groups:
                rows.rollback()

    def trim(self) -> None:
        """Give back room that no slot needs, layer by layer, with new storages.

        Where there is no memory for these, the room is kept.
        """
        try:
            for layer in self.layers:
                for rows in layer.groups:
                    rows.trim()
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise

    def slot_bytes(self, slot: int) -> int:
        """Bytes of the entries that a slot uses, over all layers."""
        row, vision = self._find(slot)
        return sum(
            layer.groups[vision].entries[row].length * layer.entry_bytes for layer in self.layers
        )

    def allocated_bytes(self) -> int:
        """Bytes of the storages behind the cache, all slots together."""
        return sum(rows.allocated_bytes() for layer in self.layers for rows in layer.groups)

    def room_bytes(
        self,
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
        with_vision = len(self._slots[True]) + (vision and prompt > 0)
        counts = [0] if text is None else _turning_points(with_vision)
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

    def _append(self, vision: bool, append: Callable[[int, KVLayer], int | None]) -> int:
        """Let each layer append a row to a group; return the sum of what they return.

        Memory may run out at any layer: the rows that others have appended go again.
        """
        done, total = 0, 0
        try:
            for number, layer in enumerate(self.layers):
                total += append(number, layer) or 0
                done += 1
        except BaseException:
            for layer in self.layers[:done]:
                rows = layer.groups[vision]
                rows.remove(len(rows) - 1)
            self.trim()
            raise
        return total

    def _remove(self, row: int, vision: bool) -> None:
        """Take a row out of its group; the last one fills the hole."""
        for layer in self.layers:
            layer.groups[vision].remove(row)
        slots = self._slots[vision]
        slots[row] = slots[-1]
        slots.pop()

    def _find(self, slot: int) -> tuple[int, bool]:
        """Return in which row a slot lies, and whether among those with vision."""
        vision = slot in self._slots[True]
        return self._slots[vision].index(slot), vision


def _turning_points(with_vision: int) -> list[int]:
    """List after how many withdrawals the room may be largest: it changes evenly in between.

    Storages hold rows in steps of `ROW_CHUNK`, and trim them in such steps.
    """
    counts = range(with_vision + 1)
    edge = 2 * ROW_CHUNK + 1
    return [*counts] if len(counts) <= 2 * edge else [*counts[:edge], *counts[-edge:]]


def cache_argument(model: Any) -> str:
    """Name the argument by which a model takes its cache, and the field in which it returns it.

    Models of transformers say `cache` since 5.24, `past_key_values` before.
    """
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def sliding_windows(prefilled: Cache) -> list[int | None]:
    """Read each layer's sliding window off a cache that transformers made for the model.

    None stands for full attention.

    Raises:
        NotExact: a layer keeps a state that the slots can't hold exactly (recurrent, shared,
            indexed …).
    """
    windows: list[int | None] = []
    for number, layer in enumerate(prefilled.layers):
        if type(layer) is DynamicLayer:
            windows.append(None)
        elif type(layer) is DynamicSlidingWindowLayer:
            windows.append(int(layer.sliding_window))
        else:
            raise NotExact(
                f"layer {number} keeps a {type(layer).__name__}, a state that can't be split into "
                "vision and text"
            )
    return windows
