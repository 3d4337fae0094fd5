"""Vision that is read by cross-attention: the caches of such layers, and withdrawal from them.

The layer (Mllama's) reads keys and values that were made from the image once, and are no part of
the sequence. Withdrawal empties them. What then becomes of the layer is one of two things:

- `skip`: the whole layer is skipped, attention and gated MLP, as transformers does for a prompt
  without an image (`MllamaTextModel.forward`).
- `mlp`: the attention contributes nothing, the gated MLP stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from mvw_cli.engine.exact import NotExact
from mvw_cli.engine.rows import Entries, Memo, Offloaded, Part, offload
from mvw_cli.engine.slot_layer import KVLayer

CrossAttention = Literal["skip", "mlp"]


def cross_attention_layers(model: Any) -> tuple[int, ...]:
    """List the layers of a model that read vision by cross-attention."""
    return tuple(getattr(model.config.get_text_config(), "cross_attention_layers", None) or ())


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
        if held is not None:
            self._load_chosen(source, held, vision, cross_entries)
            return
        states = source.keys.shape[2] if source.is_initialized else 0
        told = 0 if cross_entries is None else len(cross_entries)
        if states and (cross_entries is None or states != told):
            raise NotExact(
                f"its cross-attention holds {states} vision states, and its adapter tells of {told}"
            )
        if states and cross_entries is not None and not cross_entries.any():
            raise NotExact("its prompt ends where no image is seen")
        if bool(states) != vision:
            raise NotExact("its adapter tells of vision that its cross-attention does not hold")
        if not states or cross_entries is None:
            self._load_nothing(had_vision=False)
        else:
            kept = cross_entries.nonzero()[:, 0]
            self._load_states(source, kept, Entries(torch.arange(len(kept)), 0, len(kept)))
        self._show()

    def _load_chosen(
        self,
        source: CacheLayerMixin,
        held: Tensor,
        vision: bool,
        cross_entries: Tensor | None,
    ) -> None:
        """Append a row of which the prefill has read some vision tokens only, or none."""
        states, length = source.keys.shape[2] if source.is_initialized else 0, len(held)
        kept = torch.arange(0)
        if length and cross_entries is not None:
            entries = cross_entries.cpu()
            stays = ~entries
            stays[entries.nonzero()[held, 0]] = True
            if int(stays.sum()) == states:
                kept = entries[stays].nonzero()[:, 0]  # among them, those of padding aside
        if len(kept) != length:
            raise NotExact(f"its cross-attention holds {states} vision states, {length} of them")
        if vision and states:
            self._load_states(source, kept, Entries(held, 0, length))
        else:
            if states:
                self._set_shape(source)
                self.is_initialized = True
            if vision:  # at other layers
                self.with_vision.load_nothing()
            else:
                self._load_nothing(had_vision=True)
        self._show()

    def _load_states(self, source: CacheLayerMixin, kept: Tensor, entry: Entries) -> None:
        self._set_shape(source)
        kept = kept.to(source.keys.device)
        keys, values = source.keys[0][:, kept], source.values[0][:, kept]  # (H, K, D)
        self.with_vision.load(keys, values, entry)
        self.is_initialized = True

    def _load_nothing(self, *, had_vision: bool) -> None:
        self.withdrawn.load_nothing()
        self._had_vision.append(had_vision)

    def _set_shape(self, source: CacheLayerMixin) -> None:
        keys, values = source.keys, source.values  # (1, H, V, D)
        self._measure(keys, values)
        self._nothing = keys[:0, :, :0], values[:0, :, :0]

    def withdraw(self, row: int, leaving: Tensor) -> int:
        """Append what is left of a with-vision row, nothing, to the withdrawn rows.

        leaving: not looked at. Returns the number of vision states that go.
        """
        self._load_nothing(had_vision=True)
        self._show()
        return self.with_vision.entries[row].length

    def prune(self, row: int, leaving: Tensor, vision: bool) -> int:
        """Take vision tokens out of a row, in place; without vision there are none.

        leaving: # (N,) bool
        """
        if not vision:
            return 0
        entry = self.with_vision.entries[row]
        staying = (~leaving[entry.kept]).nonzero()[:, 0]
        if len(staying) == entry.length:
            return 0
        gone = self.with_vision.prune(row, staying)
        self._show()
        return gone

    def offload(self, row: int, leaving: Tensor, vision: bool) -> Offloaded:
        """Copy vision tokens of a row to the host.  leaving: # (N,) bool"""
        if vision and self.with_vision.entries[row].length:
            keys, values, entry = self.with_vision.row(row)
            return offload(keys, values, entry, leaving[entry.kept].nonzero()[:, 0])
        indices = torch.zeros(0, dtype=torch.long)
        if self._nothing is None:
            return Offloaded(torch.zeros(0, 0, 0), torch.zeros(0, 0, 0), indices)
        keys, values = (one.new_zeros(one.shape[1], 0, one.shape[3]) for one in self._nothing)
        return Offloaded(keys.cpu(), values.cpu(), indices)

    def restore(self, row: int, back: Offloaded, vision: bool) -> int:
        """Append a copy of a row, with its offloaded vision tokens, to the with-vision rows."""
        held = vision and self.with_vision.entries[row].length > 0
        if not held and not len(back.indices):
            self.with_vision.load_nothing()
            return 0
        device = self.keys.device
        keys, values, indices = back.keys.to(device), back.values.to(device), back.indices
        if held:
            old_keys, old_values, entry = self.with_vision.row(row)
            keys = torch.cat([old_keys, keys], dim=1)
            values = torch.cat([old_values, values], dim=1)
            indices = torch.cat([entry.kept, back.indices])
        self.with_vision.load(keys, values, Entries(indices, 0, len(indices)))
        self.is_initialized = True
        self._show()
        return len(back.indices)

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
        if self.with_vision.longest:
            self.keys, self.values = self.with_vision.seen()
        elif self._nothing is not None:
            # One empty state keeps transformers from skipping a layer whose MLP has to run.
            states = 1 if self.keep_mlp and (any(self._had_vision) or len(self.with_vision)) else 0
            self.keys, self.values = (
                one.new_zeros(states, one.shape[1], states, one.shape[3]) for one in self._nothing
            )
