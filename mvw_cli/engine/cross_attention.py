"""Vision beside the sequence: the caches of cross-attention layers, and their withdrawal.

Such a layer (Mllama's) reads keys and values that were made from the image once. Withdrawal empties
them. What then becomes of the layer is one of two things:

- `skip`: the whole layer is skipped, attention and gated MLP, as transformers does for a prompt
  without an image (`MllamaTextModel.forward`).
- `mlp`: the attention contributes nothing, the gated MLP stays.

It does not know policies, and not where in the sequence the image stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from mvw_cli.engine.exact import NotExact
from mvw_cli.engine.looking import Look
from mvw_cli.engine.prefill_weights import note_added
from mvw_cli.engine.rows import Entries, Memo, Offloaded, Part, Rows, offload

CrossAttention = Literal["skip", "mlp"]


class CrossLayer(CacheLayerMixin):  # type: ignore[misc]
    """One cross-attention layer: only the slots that see hold anything here.

    transformers reads `keys` and `values`,  # (rows, H, longest, D), and skips the layer where
    `keys` has no element.
    """

    is_compileable = False
    is_sliding = False
    window = None
    unattended = False

    def __init__(self, keep_mlp: bool, memo: Memo) -> None:
        super().__init__()
        self.is_initialized: bool = False
        self.keep_mlp = keep_mlp
        """Whether the gated MLP of a withdrawn slot still runs."""
        self.with_vision = Rows(None, memo)
        self._saw: list[bool] = []
        """Whether the slots without vision have ever held some; without it, a layer is always
        skipped."""
        self._entry_bytes = 0
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

    def get_max_length(self) -> int:
        return -1

    # -- what the attention calls -----------------------------------------------------------

    def parts(self, key: Tensor, value: Tensor) -> list[Part]:
        """Say which rows of the batch attend to anything: those that see."""
        if not self.with_vision.longest:
            return []
        return [Part(len(self._saw), key, value, self.with_vision)]

    def skipped(self) -> Tensor | None:
        """Say for which slots the whole layer must have no effect, or None for none.

        # (n,) bool
        """
        without = [not (self.keep_mlp and saw) for saw in self._saw]
        without += [not (self.keep_mlp or length) for length in self.with_vision.lengths]
        return torch.tensor(without, device=self.keys.device) if any(without) else None

    # -- what the cache calls ---------------------------------------------------------------

    def load(
        self,
        source: CacheLayerMixin,
        held: Tensor | None,
        prompt: int,
        vision: bool,
        entries: Tensor | None,
    ) -> None:
        """Append a row from a prefilled layer, keeping the vision states that are attended.

        Args:
            held: which vision tokens a policy has left to this layer; None for all: # (K,) long.
            entries: # (V,) bool

        Raises:
            NotExact: the adapter did not say which states those are.
        """
        if held is not None:
            self._load_chosen(source, held, vision, entries)
            return
        states = source.keys.shape[2] if source.is_initialized else 0
        told = 0 if entries is None else len(entries)
        if states and (entries is None or states != told):
            raise NotExact(
                f"its cross-attention holds {states} vision states, and its adapter tells of {told}"
            )
        if states and entries is not None and not entries.any():
            raise NotExact("its prompt ends where no image is seen")
        if bool(states) != vision:
            raise NotExact("its adapter tells of vision that its cross-attention does not hold")
        if not states or entries is None:
            self._saw.append(False)
        else:
            kept = entries.nonzero()[:, 0].to(source.keys.device)
            self._measure(source)
            length = len(kept)
            keys, values = source.keys[0][:, kept], source.values[0][:, kept]  # (H, K, D)
            self.with_vision.load(keys, values, Entries(torch.arange(length), length, length))
            self.is_initialized = True
        self._show()

    def _load_chosen(
        self, source: CacheLayerMixin, held: Tensor, vision: bool, entries: Tensor | None
    ) -> None:
        """Append a row of which the prefill has read some vision tokens only, or none."""
        states, length = source.keys.shape[2] if source.is_initialized else 0, len(held)
        kept = torch.arange(0)
        if length and entries is not None:
            entries = entries.cpu()
            stays = ~entries
            stays[entries.nonzero()[held, 0]] = True
            if int(stays.sum()) == states:
                kept = entries[stays].nonzero()[:, 0]  # among them, those of padding aside
        if len(kept) != length:
            raise NotExact(f"its cross-attention holds {states} vision states, {length} of them")
        if states:
            self._measure(source)
            self.is_initialized = True
        if not vision:
            self._saw.append(True)
        elif not states:
            self.with_vision.load_nothing()
        else:
            kept = kept.to(source.keys.device)
            keys, values = source.keys[0][:, kept], source.values[0][:, kept]
            self.with_vision.load(keys, values, Entries(held, 0, length))
        self._show()

    def _measure(self, source: CacheLayerMixin) -> None:
        keys, values = source.keys, source.values  # (1, H, V, D)
        self._entry_bytes = keys.shape[1] * (keys.shape[3] + values.shape[3]) * keys.element_size()
        self._nothing = keys[:0, :, :0], values[:0, :, :0]

    def unload(self, vision: bool) -> None:
        """Take the row back that was loaded last."""
        self.remove(len(self.with_vision if vision else self._saw) - 1, vision)

    def keep_without(self, row: int, indices: Tensor) -> int:
        """Append what is left of a with-vision row, nothing, to the rows without vision.

        indices: not looked at. Returns the number of vision states that go.
        """
        self._saw.append(True)
        self._show()
        return self.with_vision.entries[row].length

    def prune(self, row: int, indices: Tensor, vision: bool) -> int:
        """Take vision tokens out of a row, in place; without vision there are none.

        indices: # (N,) bool, True where the token goes
        """
        if not vision:
            return 0
        entry = self.with_vision.entries[row]
        staying = (~indices[entry.kept]).nonzero()[:, 0]
        if len(staying) == entry.length:
            return 0
        gone = self.with_vision.prune(row, staying)
        self._show()
        return gone

    def copied(self, row: int, indices: Tensor, vision: bool) -> Offloaded:
        """Copy vision tokens of a row to the host.  indices: as in `prune`."""
        if not vision or not self.with_vision.entries[row].length:
            return self._no_offloaded()
        keys, values, entry = self.with_vision.row(row)
        return offload(keys, values, entry, indices[entry.kept].nonzero()[:, 0])

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

    def indices(self, row: int, vision: bool) -> Tensor:
        """Which vision tokens a row holds: # (K,) long."""
        return self.with_vision.entries[row].kept if vision else torch.zeros(0, dtype=torch.long)

    def _no_offloaded(self) -> Offloaded:
        nothing = torch.zeros(0, dtype=torch.long)
        if self._nothing is None:
            return Offloaded(torch.zeros(0, 0, 0), torch.zeros(0, 0, 0), nothing)
        keys, values = (one.new_zeros(one.shape[1], 0, one.shape[3]) for one in self._nothing)
        return Offloaded(keys.cpu(), values.cpu(), nothing)

    def remove(self, row: int, vision: bool) -> None:
        """Take a row out; the last of its kind fills the hole."""
        if vision:
            self.with_vision.remove(row)
        else:
            self._saw[row] = self._saw[-1]
            self._saw.pop()
        self._show()

    def reserve_step(self) -> None:
        """Do nothing: no entry is ever added."""

    def trim(self, exactly: bool) -> None:
        """Give back room that no slot needs."""
        self.with_vision.trim(exactly)
        self._show()

    def lengths(self) -> tuple[list[int], list[int]]:
        return [], self.with_vision.lengths

    def rollback(self, lengths: tuple[list[int], list[int]]) -> None:
        """Do nothing: a step adds no entry."""

    def row_bytes(self, row: int, vision: bool) -> int:
        """Bytes of the vision states that a row uses."""
        return self.with_vision.entries[row].length * self._entry_bytes if vision else 0

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

    def allocated_bytes(self) -> int:
        return self.with_vision.allocated_bytes()

    def _show(self) -> None:
        """Let transformers see what is held."""
        if self.with_vision.longest:
            self.keys, self.values = self.with_vision.seen()
        elif self._nothing is not None:
            # One empty state keeps transformers from skipping a layer whose MLP has to run.
            states = 1 if self.keep_mlp and (any(self._saw) or len(self.with_vision)) else 0
            self.keys, self.values = (
                one.new_zeros(states, one.shape[1], states, one.shape[3]) for one in self._nothing
            )


def cross_attention_layers(model: Any) -> tuple[int, ...]:
    """List the layers of a model that read vision by cross-attention."""
    return tuple(getattr(model.config.get_text_config(), "cross_attention_layers", None) or ())


@contextmanager
def skipping(
    model: Any,
    layers: Sequence[int],
    cache: Callable[[], Cache | None],
    look: Callable[[], Look | None],
) -> Iterator[None]:
    """Let cross-attention layers leave the rows of withdrawn slots as they are in decode steps.

    Where all slots are withdrawn, transformers skips the layer itself. `cache` tells the slots'
    cache during a decode step, else None; `look` who looks at the step. The hooks are removed on
    the way out.

    Raises:
        NotExact: the decoder's layers aren't where transformers has them.
    """
    with ExitStack() as stack:
        for number in layers:
            decoder = model.get_decoder()
            if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
                raise NotExact("its decoder has no list of layers")
            hook = partial(_restore_skipped, number, cache, look)
            handle = decoder.layers[number].register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _restore_skipped(
    number: int,
    cache: Callable[[], Cache | None],
    look: Callable[[], Look | None],
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> Any:
    current, looking = cache(), look()
    before = args[0] if args else kwargs["hidden_states"]  # (active, 1, D), or (1, P, D)
    if current is None:
        note_added(number, before, output)
        return output
    skipped = current.layers[number].skipped()
    if skipped is not None:
        if not isinstance(output, Tensor):
            raise NotExact(f"layer {number} returns more than its hidden states")
        # In a model that is spread over devices, the layer before may have left it on another.
        output = torch.where(skipped[:, None, None], before.to(output.device), output)
    if looking is not None:
        looking.note(number, before, output)
    return output
