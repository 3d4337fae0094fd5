"""One layer of the KV cache: rows with vision and rows without are held apart.

They lie in one rectangle each, because a withdrawn row next to one with vision must not keep the
width of an image. In a batch the rows without vision come first.

A recurrent layer (linear attention, a short convolution) holds no entries: it has one state for
each row, of one size whatever it has read. Withdrawal takes nothing out of it, and what it has
taken in of the image stays. A layer that shares the keys and values of an earlier one holds
nothing.

A cross-attention layer (Mllama's) reads keys and values that were made from the image once, and are
no part of the sequence. Withdrawal empties them. What then becomes of the layer is one of two
things:

- `skip`: the whole layer is skipped, attention and gated MLP, as transformers does for a prompt
  without an image (`MllamaTextModel.forward`).
- `mlp`: the attention contributes nothing, the gated MLP stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, LinearAttentionLayer

from mvw_cli.engine.rows import Entries, Memo, Offloaded, Part, Rows, Span
from mvw_cli.engine.types import NotExact

try:
    from transformers.cache_utils import DummyLayer as DummyLayer
except ImportError:  # of releases in which every layer keeps something

    class DummyLayer:  # type: ignore[no-redef]
        """None is one."""


CrossAttention = Literal["skip", "mlp"]


def cross_attention_layers(model: PreTrainedModel) -> tuple[int, ...]:
    """List the layers of a model that read vision by cross-attention."""
    return tuple(getattr(model.config.get_text_config(), "cross_attention_layers", None) or ())


class Layer:
    """What `SlotCache` asks of a layer; the answers are those of one that holds nothing.

    A row lies among those with vision or among those without, as `vision` says. Where memory runs
    out, a method has changed nothing.
    """

    unattended = False
    """Set where a step has to attend here, cleared by the attention function."""

    def load(
        self,
        source: Any,
        held: Tensor | None,
        prompt: int,
        vision: bool,
        cross_entries: Tensor | None,
    ) -> None:
        """Append a row from a layer of transformers that holds the prefill of one sequence.

        Args:
            held: index in the sequence of the entries that the prefill has read here, # (K,) long;
                of a cross-attention layer which vision tokens, None for all.
            prompt: length of the sequence.
            cross_entries: the vision states that cross-attention layers keep.  # (V,) bool
        """

    def withdraw(self, row: int, leaving: Tensor) -> int:
        """Append a copy of a with-vision row, without some entries, to the withdrawn rows.

        leaving: as in `SlotCache.withdraw`. Returns the number of entries that went.
        """
        return 0

    def prune(self, row: int, vision: bool, leaving: Tensor) -> int:
        """Take entries out of a row in place; return how many went.  leaving: as above"""
        return 0

    def offload(self, row: int, vision: bool, leaving: Tensor) -> Offloaded:
        """Copy entries of a row to the host.  leaving: as above"""
        return Offloaded.nothing()

    def restore(self, row: int, vision: bool, back: Offloaded) -> int:
        """Append a copy of a row, with its offloaded entries, to the with-vision rows.

        Returns their number.
        """
        return 0

    def remove(self, row: int, vision: bool) -> None:
        """Take a row out of its group; the last one there fills the hole."""

    def kept(self, row: int, vision: bool) -> Tensor:
        """Which entries of a row were loaded or kept: as `Entries.kept`."""
        return torch.zeros(0, dtype=torch.long)

    def reserve_step(self) -> None:
        """Begin a step: make room for what it appends."""

    def rollback(self) -> None:
        """Put back what a step that failed has changed."""

    def finish_step(self) -> None:
        """Forget what was kept for a rollback."""

    def trim(self) -> None:
        """Give back room that no row needs, with new storages."""

    def row_bytes(self, row: int, vision: bool) -> int:
        """Bytes that a row uses."""
        return 0

    def allocated_bytes(self) -> int:
        """Bytes of the storages behind all rows."""
        return 0

    def room_bytes(
        self, prompt: int, cross: int, vision: bool, ahead: int, counts: Sequence[int], text: int
    ) -> list[int]:
        """Bytes that the storages would take; arguments as in `SlotCache.room_bytes`.

        Args:
            counts: how many have been withdrawn, the last of them just now; one answer for each.
        """
        return [0] * len(counts)


class KVLayer(Layer, CacheLayerMixin):  # type: ignore[misc]
    """A layer with entries: two groups of rows, one row for each slot in use."""

    is_compileable = False
    appends = True
    """Whether a step appends an entry to each row."""
    handed: tuple[Tensor, Tensor] | None = None
    """What the last update of this step returned."""

    def __init__(self, span: Span | None, memo: Memo) -> None:
        # Not the constructor of transformers, which would set `keys`.
        self.span = span
        """How far back its tokens see; None: to the start."""
        self.is_sliding = span is not None
        self.is_initialized: bool = False
        self.withdrawn, self.with_vision = Rows(span, memo), Rows(span, memo)
        self.groups = (self.withdrawn, self.with_vision)
        """In the order of the batch, and by whether a row has vision."""
        self.entry_bytes = 0
        self._device: torch.device | None = None

    def get_max_length(self) -> int:
        return -1

    def prune(self, row: int, vision: bool, leaving: Tensor) -> int:
        return self.groups[vision].prune(row, leaving)

    def offload(self, row: int, vision: bool, leaving: Tensor) -> Offloaded:
        return self.groups[vision].offload(row, leaving)

    def remove(self, row: int, vision: bool) -> None:
        self.groups[vision].remove(row)

    def kept(self, row: int, vision: bool) -> Tensor:
        return self.groups[vision].entries[row].kept

    def reserve_step(self) -> None:
        for rows in self.groups:
            rows.reserve_step()

    def rollback(self) -> None:
        self.handed = None
        for rows in self.groups:
            rows.rollback()

    def finish_step(self) -> None:
        self.handed = None  # a view, or a copy: its storage is needed elsewhere

    def trim(self) -> None:
        for rows in self.groups:
            rows.trim()

    def row_bytes(self, row: int, vision: bool) -> int:
        return self.groups[vision].entries[row].length * self.entry_bytes

    def allocated_bytes(self) -> int:
        return sum(rows.allocated_bytes() for rows in self.groups)

    def restore(self, row: int, vision: bool, back: Offloaded) -> int:
        group, came = self.groups[vision], len(back.indices)
        entry = group.entries[row]
        states = [group.row(row)] if group.states else []
        if came:
            # Behind the text that they once stood before; see `Entries` on why that is the same.
            there = [one.to(self._device, non_blocking=True) for one in (back.keys, back.values)]
            states.append((there[0], there[1]))
        if not states:
            self.with_vision.load_nothing()
            return 0
        keys, values = (torch.cat(parts, dim=1) for parts in zip(*states, strict=True))
        indices = torch.cat([entry.indices(entry.length), back.indices])
        self.with_vision.load(keys, values, Entries(indices, entry.next_index, len(indices)))
        return came

    def room_bytes(
        self, prompt: int, cross: int, vision: bool, ahead: int, counts: Sequence[int], text: int
    ) -> list[int]:
        rows, ends = list(map(len, self.groups)), [group.longest for group in self.groups]
        if prompt:
            rows[vision] += 1
            ends[vision] = max(ends[vision], self.held_of(prompt, cross))
        # One more than a step needs: a row is loaded with room for its next entry.
        joined_end = max(ends[0], min(text, ends[1])) + 1
        ahead = ahead if self.appends else 1
        rooms = []
        for more in counts:
            places = self.with_vision.room_for(rows[1], ends[1] + ahead, gone=max(0, more - 1))
            if self.appends:
                end = joined_end if more else ends[0]
                places += self.withdrawn.room_for(rows[0] + more, end + ahead)
            rooms.append(places * self.entry_bytes)
        return rooms

    def held_of(self, prompt: int, cross: int) -> int:
        """Count the entries that are held of a prompt, or of its attended vision states."""
        return prompt if self.span is None else min(prompt, self.span.size - 1)

    def _measure(self, keys: Tensor, values: Tensor) -> None:
        """Note how wide an entry is, and where it lies.  keys, values: # (1, H, T, D)"""
        self.entry_bytes = keys.shape[1] * (keys.shape[3] + values.shape[3]) * keys.element_size()
        self._device = keys.device


class SlotLayer(KVLayer):
    """One self-attention layer."""

    _handed_on: bool | None = None
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
            self.handed = (withdrawn if first else self.with_vision).seen()
        elif self._handed_on:
            self.handed = withdrawn.seen()
        else:
            self.handed = joined(withdrawn.seen(), self.with_vision.seen())
        return self.handed

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return max(self.withdrawn.longest, self.with_vision.longest) + query_length, 0

    def get_seq_length(self) -> int:
        return max((one.next_index for rows in self.groups for one in rows.entries), default=0)

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
        handed = self.handed  # until the step is over: layers that share it have yet to attend
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

    def join(self) -> None:
        """Return all rows in one from now on: something beside the attention reads them, too."""
        self._handed_on = False

    # -- what the cache calls ---------------------------------------------------------------

    def load(
        self,
        source: CacheLayerMixin,
        held: Tensor | None,
        prompt: int,
        vision: bool,
        cross_entries: Tensor | None,
    ) -> None:
        assert held is not None
        keys, values = source.keys[0], source.values[0]  # (H, T, D)
        length = keys.shape[1]  # below K where a sliding layer let go of the start
        entry = Entries(held if length == len(held) else held[-length:], prompt, length)
        self._measure(source.keys, source.values)
        self.groups[vision].load(keys, values, entry)

    def withdraw(self, row: int, leaving: Tensor) -> int:
        (keys, values), entry = self.with_vision.row(row), self.with_vision.entries[row]
        places = (~entry.among(leaving)).nonzero()[:, 0]
        on_device = places.to(keys.device)
        self.withdrawn.load(keys[:, on_device], values[:, on_device], entry.kept_at(places))
        return entry.length - len(places)


class CrossLayer(KVLayer):
    """One cross-attention layer: only the slots with vision hold anything here.

    transformers reads `keys` and `values`,  # (rows, H, longest, D), and skips the layer where they
    are empty: newer releases go by the elements of `keys`, older ones by `get_seq_length`.
    """

    appends = False

    def __init__(self, keep_mlp: bool, memo: Memo) -> None:
        super().__init__(None, memo)
        self.keep_mlp = keep_mlp
        """Whether the gated MLP of a withdrawn slot still runs."""
        self._nothing: tuple[Tensor, ...] = ()
        """Keys and values of no vision state at all.  # (0, H, 0, D)"""

    # -- what transformers calls ------------------------------------------------------------

    @property
    def keys(self) -> Tensor:
        return self._shown(0)

    @property
    def values(self) -> Tensor:
        return self._shown(1)

    def _shown(self, which: int) -> Tensor:
        if self.with_vision.longest:
            return self.with_vision.seen()[which]
        # One empty state keeps transformers from skipping a layer whose MLP has to run.
        had = any(entry.had_vision for rows in self.groups for entry in rows.entries)
        states, like = int(self.keep_mlp and had), self._nothing[which]
        return like.new_zeros(states, like.shape[1], states, like.shape[3])

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotExact("it fills its cross-attention outside of the prefill")

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        raise NotExact("it reads an image in a decode step")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.with_vision.longest, 0

    def get_seq_length(self) -> int:
        return self.keys.shape[2] if self.is_initialized else 0

    # -- what the attention and the engine's hooks call -------------------------------------

    def parts(self, key: Tensor, value: Tensor) -> list[Part]:
        """Return the rows of the batch that attend to anything: those with vision."""
        if not self.with_vision.longest:
            return []
        return [Part(len(self.withdrawn), key, value, self.with_vision)]

    def without_skipped(self, before: Tensor, output: Tensor) -> Tensor:
        """Undo what the layer has done to the rows of slots that skip it.

        before, output: the hidden states that it got and returned.  # (n, 1, D)

        Raises:
            NotExact: it returns more than hidden states.
        """
        skipped = [not (self.keep_mlp and entry.had_vision) for entry in self.withdrawn.entries]
        skipped += [not (self.keep_mlp or length) for length in self.with_vision.lengths]
        if not any(skipped):
            return output
        if not isinstance(output, Tensor):
            raise NotExact("a cross-attention layer returns more than its hidden states")
        rows = torch.tensor(skipped, device=output.device)[:, None, None]
        # In a model that is spread over devices, the layer before may have left it on another.
        return torch.where(rows, before.to(output.device), output)

    # -- what the cache calls ---------------------------------------------------------------

    def load(
        self,
        source: CacheLayerMixin,
        held: Tensor | None,
        prompt: int,
        vision: bool,
        cross_entries: Tensor | None,
    ) -> None:
        """Append a row, as `Layer.load`, keeping the vision states that are attended.

        Raises:
            NotExact: the adapter did not say which states those are.
        """
        states = source.keys.shape[2] if source.is_initialized else 0
        entries = torch.zeros(0, dtype=torch.bool) if cross_entries is None else cross_entries.cpu()
        tokens = entries.nonzero()[:, 0]
        whole = held is None
        if held is None:
            held = torch.arange(len(tokens))
            if states and len(entries) and not len(tokens):
                raise NotExact("its prompt ends where no image is seen")
        stays = ~entries  # those of padding: the prefill has read them, and nobody attends to them
        stays[tokens[held]] = True
        told = int(stays.sum())
        if states != told and (len(held) or (whole and states)):
            raise NotExact(
                f"its cross-attention holds {states} vision states, and its adapter tells of {told}"
            )
        if states:
            self._measure(source.keys, source.values)
            self._nothing = source.keys[:0, :, :0], source.values[:0, :, :0]
            self.is_initialized = True
        if states and vision:
            kept = entries[stays].nonzero()[:, 0].to(source.keys.device)
            keys, values = source.keys[0][:, kept], source.values[0][:, kept]  # (H, K, D)
            self.with_vision.load(keys, values, Entries(held, 0, len(held)))
        elif vision:  # at other layers
            self.with_vision.load_nothing()
        else:
            self.withdrawn.load_nothing(had_vision=not whole)

    def withdraw(self, row: int, leaving: Tensor) -> int:
        self.withdrawn.load_nothing()
        return self.with_vision.entries[row].length

    def held_of(self, prompt: int, cross: int) -> int:
        return cross


class SharedLayer(Layer, DummyLayer):  # type: ignore[misc]
    """A layer that attends to what an earlier one holds, as the deeper ones of Gemma 3n and 4 do.

    Or, without a producer, one that does not attend at all.
    """

    def __init__(self, producer: SlotLayer | None = None) -> None:
        DummyLayer.__init__(self)
        self._producer = producer

    @property
    def span(self) -> Span | None:
        return None if self._producer is None else self._producer.span

    def reserve_step(self) -> None:
        self.unattended = self._producer is not None

    def join(self) -> None:
        """Refuse, as `SlotLayer.join` is for what no such layer does."""
        raise NotExact("a layer that shares keys and values adds something to its attention")

    def parts(self, key: Tensor, value: Tensor) -> list[Part]:
        """Split an attention call, as `SlotLayer.parts`.

        Raises:
            NotExact: it reads something other than what its producer has returned in this step.
        """
        self.unattended = False
        handed = None if self._producer is None else self._producer.handed
        if self._producer is None or handed is None:
            raise NotExact("a layer attends that was taken not to")
        if key.device != handed[0].device:
            raise NotExact("layers that share keys and values lie on different devices")
        if key is not handed[0] or value is not handed[1]:
            raise NotExact("a layer reads other keys and values than it was taken to share")
        return self._producer.parts(key, value)


class RecurrentLayer(Layer, LinearAttentionLayer):  # type: ignore[misc]
    """A layer with a state for each row; models write the new one over the old one.

    All rows of a state lie in one tensor, in the order of the batch.
    """

    def __init__(self, states: int) -> None:
        LinearAttentionLayer.__init__(self, number_of_states=states)
        self._rows = [0, 0]
        """In each group, as `KVLayer.groups`."""
        self._row_bytes = 0
        self._before: list[Tensor] = []
        """The states as they were before the step that is running."""

    def load(
        self,
        source: Any,
        held: Tensor | None,
        prompt: int,
        vision: bool,
        cross_entries: Tensor | None,
    ) -> None:
        new = [held_by[i] for held_by, i in _states(source)]
        self._row_bytes = sum(state.nbytes for state in new)
        if not sum(self._rows):
            for name in _DESCRIBED:
                setattr(self, name, dict(getattr(source, name)))
            self.device, self.dtype = source.device, source.dtype
            for (held_by, i), state in zip(_states(source), new, strict=True):
                own = self.conv_states if held_by is source.conv_states else self.recurrent_states
                own[i] = state[:0]
        self._append(vision, new)

    def withdraw(self, row: int, leaving: Tensor) -> int:
        self._append(False, self._copy(row, vision=True))
        return 0

    def restore(self, row: int, vision: bool, back: Offloaded) -> int:
        self._append(True, self._copy(row, vision))
        return 0

    def remove(self, row: int, vision: bool) -> None:
        place, last = self._place(row, vision), self._place(self._rows[vision] - 1, vision)
        for held_by, i in _states(self):
            state = held_by[i]
            state[place] = state[last]
            for moved in range(last, len(state) - 1):  # one by one: memory may have run out
                state[moved] = state[moved + 1]
            held_by[i] = state[:-1]
        self._rows[vision] -= 1

    def reserve_step(self) -> None:
        self._before = [held_by[i].clone() for held_by, i in _states(self)]

    def rollback(self) -> None:
        for (held_by, i), state in zip(_states(self), self._before, strict=True):
            held_by[i] = state
        self._before = []

    def finish_step(self) -> None:
        self._before = []

    def trim(self) -> None:
        for held_by, i in _states(self):
            state = held_by[i]
            if state.untyped_storage().nbytes() > state.nbytes:
                held_by[i] = state.clone()

    def row_bytes(self, row: int, vision: bool) -> int:
        return self._row_bytes

    def allocated_bytes(self) -> int:
        # With the copy that each step makes first.
        return 2 * sum(held_by[i].untyped_storage().nbytes() for held_by, i in _states(self))

    def room_bytes(
        self, prompt: int, cross: int, vision: bool, ahead: int, counts: Sequence[int], text: int
    ) -> list[int]:
        # A withdrawal copies a row before it takes the old one away.
        rows = sum(self._rows) + (prompt > 0)
        return [2 * self._row_bytes * (rows + (more > 0)) for more in counts]

    def _place(self, row: int, vision: bool) -> int:
        """Return in which row of the batch a row of a group lies."""
        return row + self._rows[False] * vision

    def _copy(self, row: int, vision: bool) -> list[Tensor]:
        """Return views of the states of one row: # (1, …) each."""
        place = self._place(row, vision)
        return [held_by[i][place : place + 1] for held_by, i in _states(self)]

    def _append(self, vision: bool, new: Sequence[Tensor]) -> None:
        """Append a row to a group.  new: # (1, …), state by state"""
        place = self._place(self._rows[vision], vision)
        longer = [
            torch.cat([held_by[i][:place], state, held_by[i][place:]])
            for (held_by, i), state in zip(_states(self), new, strict=True)
        ]
        for (held_by, i), state in zip(_states(self), longer, strict=True):
            held_by[i] = state
        self._rows[vision] += 1


_DESCRIBED = (
    "is_conv_states_initialized",
    "is_recurrent_states_initialized",
    "has_previous_state",
    "conv_kernel_size",
)
"""What transformers' layer notes about each of its states."""


def _states(layer: LinearAttentionLayer) -> Iterator[tuple[dict[int, Tensor], int]]:
    """Yield where the states of a layer stand: its tables, and the keys in use there."""
    for held_by in (layer.conv_states, layer.recurrent_states):
        yield from ((held_by, i) for i, state in held_by.items() if state is not None)


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
