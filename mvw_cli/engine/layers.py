"""One layer of the KV cache: rows with vision and rows without are held apart.

They lie in one rectangle each, because a withdrawn row next to one with vision must not keep the
width of an image. In a batch the rows without vision come first.

A cross-attention layer (Mllama's) reads keys and values that were made from the image once, and are
no part of the sequence. Withdrawal empties them. What then becomes of the layer is one of two
things:

- `skip`: the whole layer is skipped, attention and gated MLP, as transformers does for a prompt
  without an image (`MllamaTextModel.forward`).
- `mlp`: the attention contributes nothing, the gated MLP stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from mvw_cli.engine.rows import Entries, Memo, Offloaded, Part, Rows
from mvw_cli.engine.types import NotExact

CrossAttention = Literal["skip", "mlp"]


def cross_attention_layers(model: PreTrainedModel) -> tuple[int, ...]:
    """List the layers of a model that read vision by cross-attention."""
    return tuple(getattr(model.config.get_text_config(), "cross_attention_layers", None) or ())


class KVLayer(CacheLayerMixin):  # type: ignore[misc]
    """What every layer of a `SlotCache` has: two groups of rows, one row for each slot in use."""

    is_compileable = False
    unattended = False
    """Set by `update`, cleared by the attention function: it must see every update."""
    appends = True
    """Whether a step appends an entry to each row."""
    handed: tuple[Tensor, Tensor] | None = None
    """What the last update returned."""

    def __init__(self, window: int | None, memo: Memo) -> None:
        # Not the constructor of transformers, which would set `keys`.
        self.window = window
        """Sliding-window size in tokens, or None for full attention."""
        self.is_sliding = window is not None
        self.is_initialized: bool = False
        self.withdrawn, self.with_vision = Rows(window, memo), Rows(window, memo)
        self.groups = (self.withdrawn, self.with_vision)
        """In the order of the batch, and by whether a row has vision."""
        self.entry_bytes = 0
        self._device: torch.device | None = None

    def get_max_length(self) -> int:
        return -1

    def restore(self, row: int, back: Offloaded, vision: bool) -> int:
        """Append a copy of a row, with its offloaded entries, to the with-vision rows.

        Returns their number. If memory runs out, nothing has changed.
        """
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
        """Bytes that the storages would take; arguments as in `SlotCache.room_bytes`.

        Args:
            counts: how many have been withdrawn, the last of them just now; one answer for each.
        """
        rows, ends = list(map(len, self.groups)), [group.longest for group in self.groups]
        if prompt:
            rows[vision] += 1
            ends[vision] = max(ends[vision], self.kept(prompt, cross))
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

    def kept(self, prompt: int, cross: int) -> int:
        """Count the entries that are kept of a prompt, or of its attended vision states."""
        return prompt if self.window is None else min(prompt, self.window - 1)

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
        handed, self.handed = self.handed, None
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
        self.groups[vision].load(keys, values, entry)

    def withdraw(self, row: int, leaving: Tensor) -> int:
        """Append a copy of a with-vision row, without some entries, to the withdrawn rows.

        leaving: by index in the sequence, # (P,) bool; tokens past P stay. Returns the number of
        entries that went. If memory runs out, nothing has changed.
        """
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
        """Append a row from a prefilled layer, keeping the vision states that are attended.

        Args:
            held: which vision tokens a policy has left to this layer; None for all: # (K,) long.
            cross_entries: # (V,) bool

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
        """Append what is left of a with-vision row, nothing, to the withdrawn rows.

        leaving: all that is left. Returns the number of vision states that go.
        """
        self.withdrawn.load_nothing()
        return self.with_vision.entries[row].length

    def kept(self, prompt: int, cross: int) -> int:
        return cross


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
