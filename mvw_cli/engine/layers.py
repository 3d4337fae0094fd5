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

from mvw_cli.engine.rows import Entries, Memo, Offloaded, Part, Rows, offload
from mvw_cli.engine.types import NotExact

CrossAttention = Literal["skip", "mlp"]


def cross_attention_layers(model: PreTrainedModel) -> tuple[int, ...]:
    """List the layers of a model that read vision by cross-attention."""
    return tuple(getattr(model.config.get_text_config(), "cross_attention_layers", None) or ())


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
        self.withdrawn, self.with_vision = Rows(window, memo), Rows(window, memo)
        self.groups = (self.withdrawn, self.with_vision)
        """In the order of the batch, and by whether a row has vision."""
        self._entry_bytes = 0
        self._device: torch.device | None = None

    def get_max_length(self) -> int:
        return -1

    def indices(self, row: int, vision: bool) -> Tensor:
        """Return what each entry that was loaded or kept stands for: # (K,) long.

        Its index in the sequence, or at a cross-attention layer its number as a vision token.
        """
        return self.groups[vision].entries[row].kept

    # -- entries leave and come back; `leaving`, by what `indices` tells: # (P,) or (N,) bool; what
    # -- lies past its end stays -------------------------------------------------------------

    def prune(self, row: int, leaving: Tensor, vision: bool) -> int:
        """Take entries out of a row, in place; return how many went."""
        group = self.groups[vision]
        return group.prune(row, (~_leave(group.entries[row], leaving)).nonzero()[:, 0])

    def offload(self, row: int, leaving: Tensor, vision: bool) -> Offloaded:
        """Copy entries of a row to the host."""
        group = self.groups[vision]
        if not group.states:  # cross-attention rows without any entry
            return Offloaded(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.long))
        keys, values, entry = group.row(row)
        return offload(keys, values, entry, _leave(entry, leaving).nonzero()[:, 0])

    def restore(self, row: int, back: Offloaded, vision: bool) -> int:
        """Append a copy of a row, with its offloaded entries, to the with-vision rows.

        Returns their number. If memory runs out, nothing has changed.
        """
        group, came = self.groups[vision], len(back.indices)
        entry = group.entries[row]
        pairs = [group.row(row)[:2]] if group.states else []
        if came:
            # Behind the text that they once stood before; see `Entries` on why that is the same.
            pairs.append(
                (
                    back.keys.to(self._device, non_blocking=True),
                    back.values.to(self._device, non_blocking=True),
                )
            )
        if not pairs:
            self.with_vision.load_nothing()
            return 0
        keys, values = (torch.cat(states, dim=1) for states in zip(*pairs, strict=True))
        indices = torch.cat([entry.indices(entry.length), back.indices])
        self.with_vision.load(keys, values, Entries(indices, entry.next_index, len(indices)))
        return came

    def unload(self, vision: bool) -> None:
        """Take the row out that was loaded last."""
        self.remove(len(self.groups[vision]) - 1, vision)

    def remove(self, row: int, vision: bool) -> None:
        """Take a row out; the last of its group fills the hole."""
        self.groups[vision].remove(row)

    # -- steps and room ---------------------------------------------------------------------

    def reserve_step(self) -> None:
        """Make room for one more entry in every slot."""
        for rows in self.groups:
            rows.reserve_step()

    def rollback(self) -> None:
        """Forget what a step that failed has appended."""
        for rows in self.groups:
            rows.rollback()

    def trim(self, exactly: bool) -> None:
        """Give back room that no slot needs."""
        for rows in self.groups:
            rows.trim(exactly)

    def row_bytes(self, row: int, vision: bool) -> int:
        """Bytes of the entries that a row uses."""
        return self.groups[vision].entries[row].length * self._entry_bytes

    def allocated_bytes(self) -> int:
        return sum(rows.allocated_bytes() for rows in self.groups)

    def _measure(self, keys: Tensor, values: Tensor) -> None:
        """Note how wide an entry is, and where it lies.  keys, values: # (1, H, T, D)"""
        self._entry_bytes = keys.shape[1] * (keys.shape[3] + values.shape[3]) * keys.element_size()
        self._device = keys.device


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
        self.groups[vision].load(keys, values, entry)

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

    def rollback(self) -> None:
        super().rollback()
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


class CrossLayer(KVLayer):
    """One cross-attention layer: only the slots with vision hold anything here.

    transformers reads `keys` and `values`,  # (rows, H, longest, D), and skips the layer where
    `keys` has no element.
    """

    def __init__(self, keep_mlp: bool, memo: Memo) -> None:
        super().__init__(None, memo)
        self.keep_mlp = keep_mlp
        """Whether the gated MLP of a withdrawn slot still runs."""
        self._had_vision: list[bool] = []
        """By withdrawn row, whether it has ever held some; without it, a layer is always
        skipped."""
        self._nothing: tuple[Tensor, Tensor] | None = None
        """Keys and values of no vision state at all.  # (0, H, 0, D)"""

    # -- what transformers calls ------------------------------------------------------------

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotExact("it fills its cross-attention outside of the prefill")

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        raise NotExact("it reads an image in a decode step")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.with_vision.longest, 0

    def get_seq_length(self) -> int:
        return self.with_vision.longest

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
        skipped = [not (self.keep_mlp and had) for had in self._had_vision]
        skipped += [not (self.keep_mlp or length) for length in self.with_vision.lengths]
        if not any(skipped):
            return output
        if not isinstance(output, Tensor):
            raise NotExact("a cross-attention layer returns more than its hidden states")
        rows = torch.tensor(skipped, device=self.keys.device)[:, None, None]
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
        if states and vision:
            kept = entries[stays].nonzero()[:, 0].to(source.keys.device)
            keys, values = source.keys[0][:, kept], source.values[0][:, kept]  # (H, K, D)
            self.with_vision.load(keys, values, Entries(held, 0, len(held)))
        elif vision:  # at other layers
            self.with_vision.load_nothing()
        else:
            self._load_withdrawn(had_vision=not whole)
        self._show()

    def _load_withdrawn(self, *, had_vision: bool) -> None:
        self.withdrawn.load_nothing()
        self._had_vision.append(had_vision)

    def withdraw(self, row: int, leaving: Tensor) -> int:
        """Append what is left of a with-vision row, nothing, to the withdrawn rows.

        leaving: all that is left. Returns the number of vision states that go.
        """
        self._load_withdrawn(had_vision=True)
        self._show()
        return self.with_vision.entries[row].length

    def prune(self, row: int, leaving: Tensor, vision: bool) -> int:
        gone = super().prune(row, leaving, vision)
        self._show()
        return gone

    def restore(self, row: int, back: Offloaded, vision: bool) -> int:
        came = super().restore(row, back, vision)
        self._show()
        return came

    def remove(self, row: int, vision: bool) -> None:
        super().remove(row, vision)
        if not vision:
            self._had_vision[row] = self._had_vision[-1]
            self._had_vision.pop()
        self._show()

    def reserve_step(self) -> None:
        """Do nothing: a step adds no entry."""

    def trim(self, exactly: bool) -> None:
        super().trim(exactly)
        self._show()

    def room_bytes(
        self, prompt: int, cross: int, vision: bool, ahead: int, counts: Sequence[int], text: int
    ) -> list[int]:
        """Bytes that the storages would take; arguments as in `SlotLayer.room_bytes`."""
        rows, longest = len(self.with_vision), self.with_vision.longest
        if prompt and vision:
            rows, longest = rows + 1, max(longest, cross)
        return [
            self.with_vision.room_for(rows, longest + 1, gone=max(0, more - 1)) * self._entry_bytes
            for more in counts
        ]

    def _show(self) -> None:
        """Let transformers see what is held."""
        if self._nothing is None:
            return
        self.is_initialized = True
        if self.with_vision.longest:
            self.keys, self.values = self.with_vision.seen()
            return
        # One empty state keeps transformers from skipping a layer whose MLP has to run.
        states = int(self.keep_mlp and (any(self._had_vision) or len(self.with_vision) > 0))
        self.keys, self.values = (
            one.new_zeros(states, one.shape[1], states, one.shape[3]) for one in self._nothing
        )


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
