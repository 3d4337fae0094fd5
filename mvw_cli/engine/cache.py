"""The KV cache of the engine: slots, each with its own length at every layer.

Here is in which row a slot lies; the layers (`layers.py`) store, grow, compact and count bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from mvw_cli.engine.layers import (
    CrossLayer,
    DummyLayer,
    Layer,
    RecurrentLayer,
    SharedLayer,
    SlotLayer,
)
from mvw_cli.engine.memory import ran_out
from mvw_cli.engine.rows import ROW_CHUNK, Memo, Offloaded, Span
from mvw_cli.engine.types import NotExact


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What one layer of a model keeps from step to step: entries, states, or nothing."""

    span: Span | None = None
    """How far back its tokens see; None: to the start."""
    states: int = 0
    """Pairs of states that it keeps in place of entries, where it is recurrent."""
    producer: int | None = None
    """Number of the layer whose entries it attends to, having none of its own."""
    attends: bool = True
    """Whether it attends at all."""

    @property
    def holds(self) -> bool:
        """Whether it has entries of its own."""
        return self.attends and not self.states and self.producer is None


class SlotCache(Cache):  # type: ignore[misc]
    """The layers of one engine, and the slots in use."""

    def __init__(
        self,
        kinds: Sequence[LayerKind],
        *,
        cross_layers: Sequence[int] = (),
        keep_mlp: bool = False,
    ) -> None:
        # Layers mostly agree on their lengths, and each transfer to the device costs a launch.
        self._memo: Memo = {}
        layers: list[Any] = []
        for number, kind in enumerate(kinds):
            if number in cross_layers:
                layers.append(CrossLayer(keep_mlp, self._memo))
            elif kind.states:
                layers.append(RecurrentLayer(kind.states))
            elif kind.producer is not None:
                layers.append(SharedLayer(layers[kind.producer]))
            else:
                layers.append(SlotLayer(kind.span, self._memo) if kind.attends else SharedLayer())
        super().__init__(layers=layers)
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

        def load(number: int, layer: Layer) -> None:
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
            gone: int = sum(layer.prune(row, vision, one) for layer, one in pairs)
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
        return [layer.offload(row, vision, one) for layer, one in pairs]

    def restore(self, slot: int, back: Sequence[Offloaded]) -> int:
        """Put entries that `offload` has copied back into a slot, which has vision from here on.

        Returns their number, summed over the layers. If memory runs out, nothing has changed.
        """
        row, vision = self._find(slot)
        came = self._append(True, lambda number, layer: layer.restore(row, vision, back[number]))
        self._slots[True].append(slot)
        self._remove(row, vision)
        self.trim()
        return came

    def indices(self, slot: int) -> list[Tensor]:
        """By layer, which entries were loaded or kept: index in the sequence, or for
        cross-attention which vision token.  # (K,) long, on the host"""
        row, vision = self._find(slot)
        return [layer.kept(row, vision) for layer in self.layers]

    def reserve_step(self) -> None:
        """Start a step: make room for one more entry in every slot, and copies of the states.

        If memory runs out, the slots are as before.
        """
        self._memo.clear()
        try:
            for layer in self.layers:
                layer.reserve_step()
        except BaseException:
            for layer in self.layers:
                layer.finish_step()
            raise

    def undo_step(self) -> None:
        """Put everything back as it was before a step that failed."""
        for layer in self.layers:
            layer.rollback()

    def finish_step(self) -> None:
        """End a step that went well.

        Raises:
            NotExact: a layer attends by other means than our attention, and so without the slots'
                masks.
        """
        missed = [number for number, layer in enumerate(self.layers) if layer.unattended]
        if missed:
            raise NotExact(f"layers {missed} do not use transformers' attention interface")
        for layer in self.layers:
            layer.finish_step()

    def trim(self) -> None:
        """Give back room that no slot needs, layer by layer, with new storages.

        Where there is no memory for these, the room is kept.
        """
        try:
            for layer in self.layers:
                layer.trim()
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise

    def slot_bytes(self, slot: int) -> int:
        """Bytes of the entries and states that a slot uses, over all layers."""
        row, vision = self._find(slot)
        return sum(layer.row_bytes(row, vision) for layer in self.layers)

    def state_bytes(self, slot: int) -> int:
        """Bytes of the recurrent states among them: no withdrawal takes these."""
        row, vision = self._find(slot)
        recurrent = [layer for layer in self.layers if isinstance(layer, RecurrentLayer)]
        return sum(layer.row_bytes(row, vision) for layer in recurrent)

    def allocated_bytes(self) -> int:
        """Bytes of the storages behind the cache, all slots together."""
        return sum(layer.allocated_bytes() for layer in self.layers)

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

    def _append(self, vision: bool, append: Callable[[int, Layer], int | None]) -> int:
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
                layer.remove(len(self._slots[vision]), vision)
            self.trim()
            raise
        return total

    def _remove(self, row: int, vision: bool) -> None:
        """Take a row out of its group; the last one fills the hole."""
        for layer in self.layers:
            layer.remove(row, vision)
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


def layer_kinds(cache: Cache, text: Any) -> list[LayerKind]:
    """Read off a cache that transformers made for a model what each layer keeps.

    Args:
        text: the configuration of the language model.

    Raises:
        NotExact: a layer keeps something else, which the slots can't hold exactly.
    """
    types = getattr(text, "layer_types", None) or [None] * len(cache.layers)
    slides = getattr(text, "sliding_window", None) is not None
    sharing = getattr(text, "kv_sharing_modes", None) or [None] * len(cache.layers)
    kinds: list[LayerKind] = []
    if len(cache.layers) < text.num_hidden_layers:  # in releases without a DummyLayer
        raise NotExact("layers share what others hold, which takes a newer transformers")
    spans: dict[Span, Span] = {}  # one object for all that are equal: `per_layer` tells by it
    for number, (layer, named, mode) in enumerate(zip(cache.layers, types, sharing, strict=False)):
        if type(layer) is DynamicLayer:
            kinds.append(LayerKind())
        elif type(layer) is DynamicSlidingWindowLayer:
            chunked = named == "chunked_attention" or (named is None and not slides)
            span = Span(int(layer.sliding_window), chunked)
            kinds.append(LayerKind(spans.setdefault(span, span)))
        elif type(layer) is LinearAttentionLayer:
            kinds.append(LayerKind(states=len(layer.conv_states)))
        elif type(layer) is DummyLayer and mode == "reuse":
            # As transformers has it: the last before that keeps its own, of the same kind.
            producer = max(n for n in range(number) if types[n] == named and kinds[n].holds)
            kinds.append(LayerKind(kinds[producer].span, producer=producer))
        elif type(layer) is DummyLayer:
            kinds.append(LayerKind(attends=False))
        else:
            raise NotExact(
                f"layer {number} keeps a {type(layer).__name__}, a state that can't be split into "
                "vision and text"
            )
    return kinds
