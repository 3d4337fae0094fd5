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

CrossAttention = Literal["skip", "mlp"]


class CrossLayer(CacheLayerMixin):  # type: ignore[misc]
    """One cross-attention layer: `keys` and `values` are  # (active, H, longest, D).

    Rows are as wide as the longest, so that a row that was withdrawn costs nothing once all are.
    transformers skips the layer where `keys` has no element.
    """

    is_compileable = False
    is_sliding = False
    window = None
    unattended = False

    def __init__(self, keep_mlp: bool) -> None:
        super().__init__()
        self.is_initialized: bool = False
        self.keep_mlp = keep_mlp
        """Whether the gated MLP of a withdrawn slot still runs."""
        self.active = 0
        self.lengths: list[int] = []
        """Vision states in use, of the active slots."""
        self.saw: list[bool] = []
        """Whether the active slots have ever held vision; without it, a layer is always skipped."""

    # -- what transformers calls ------------------------------------------------------------

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotExact("it fills its cross-attention outside of the prefill")

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        raise NotExact("it reads an image in a decode step")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return max(self.lengths, default=0), 0

    def get_seq_length(self) -> int:
        return max(self.lengths, default=0)

    def get_max_length(self) -> int:
        return -1

    # -- what the engine calls --------------------------------------------------------------

    def load(self, slot: int, source: CacheLayerMixin, entries: Tensor | None) -> None:
        """Fill the next slot from a prefilled layer, keeping the vision states that are attended.

        entries: # (V,) bool

        Raises:
            NotExact: the adapter did not say which states those are.
        """
        assert slot == len(self.lengths)
        if not source.is_initialized or not source.keys.numel():
            self._append(None)
            return
        if entries is None or len(entries) != source.keys.shape[2]:
            raise NotExact(
                f"its cross-attention holds {source.keys.shape[2]} vision states, and its adapter "
                f"tells of {0 if entries is None else len(entries)}"
            )
        if not entries.any():
            raise NotExact("its prompt ends where no image is seen")
        kept = entries.nonzero()[:, 0].to(source.keys.device)
        self._append((source.keys[:, :, kept], source.values[:, :, kept]))

    def withdraw(self, slot: int, indices: Tensor) -> int:
        """Empty a slot; return how many vision states went.  indices: not looked at."""
        gone = self.lengths[slot]
        self.lengths[slot] = 0
        return gone

    def move(self, source: int, target: int) -> None:
        """Copy slot `source` over slot `target`."""
        if self.is_initialized:
            self.keys[target] = self.keys[source]
            self.values[target] = self.values[source]
        self.lengths[target] = self.lengths[source]
        self.saw[target] = self.saw[source]

    def clear(self, slot: int) -> None:
        """Forget the last slot, whose row goes."""
        assert slot == len(self.lengths) - 1
        self.lengths.pop()
        self.saw.pop()
        if self.is_initialized:
            self._resize(slot)

    def reserve_step(self) -> None:
        """Do nothing: no entry is ever added."""

    def trim(self) -> None:
        """Give back the width that no slot needs, with new storages."""
        if self.is_initialized:
            self._resize(len(self.lengths))

    def slot_bytes(self, slot: int) -> int:
        """Bytes of the vision states that a slot uses."""
        return self.lengths[slot] * self.bytes_per_entry()

    def bytes_per_entry(self) -> int:
        """Bytes of one slot's entry: all heads, key and value."""
        if not self.is_initialized:
            return 0
        heads, key_dim = self.keys.shape[1], self.keys.shape[3]
        return int(heads * (key_dim + self.values.shape[3]) * self.keys.element_size())

    def attendable(self) -> Tensor | None:
        """Say which vision states each active slot may attend to, or None for all.

        # (active, 1, 1, longest) bool
        """
        width = int(self.keys.shape[2])
        if min(self.lengths) == width:
            return None
        ends = torch.tensor(self.lengths, device=self.keys.device)[:, None]
        return (torch.arange(width, device=self.keys.device)[None] < ends)[:, None, None]

    def on_device(self, numbers: list[int]) -> Tensor:
        """Put a number per slot on the device: # (active,)."""
        return torch.tensor(numbers, device=self.keys.device)

    def silent(self) -> Tensor | None:
        """Say which active slots hold nothing to attend to, or None where each holds something.

        # (active,) bool
        """
        return self._rows([not length for length in self.lengths])

    def skipped(self) -> Tensor | None:
        """Say for which active slots the whole layer must have no effect, or None for none.

        # (active,) bool
        """
        if not self.keep_mlp:
            return self.silent()
        return self._rows([not saw for saw in self.saw])

    def _rows(self, chosen: list[bool]) -> Tensor | None:
        return torch.tensor(chosen, device=self.keys.device) if any(chosen) else None

    def _append(self, states: tuple[Tensor, Tensor] | None) -> None:
        rows = len(self.lengths)
        self.lengths.append(0 if states is None else states[0].shape[2])
        self.saw.append(states is not None)
        if states is not None and not self.is_initialized:
            self.keys, self.values = (s.new_zeros(rows, s.shape[1], 0, s.shape[3]) for s in states)
            self.is_initialized = True
        if self.is_initialized:
            self._resize(rows + 1)
        if states is not None:
            self.keys[rows, :, : self.lengths[rows]] = states[0][0]
            self.values[rows, :, : self.lengths[rows]] = states[1][0]

    def _resize(self, rows: int) -> None:
        # One empty column keeps transformers from skipping a layer whose MLP has to run.
        narrowest = 1 if self.keep_mlp and any(self.saw) else 0
        width = max([narrowest, *self.lengths])
        if (rows, width) != (self.keys.shape[0], self.keys.shape[2]):
            self.keys = _resized(self.keys, rows, width)
            self.values = _resized(self.values, rows, width)


def _resized(states: Tensor, rows: int, width: int) -> Tensor:
    """Copy states to another number of rows and another width.  # (rows, H, width, D)"""
    fresh = states.new_zeros(rows, states.shape[1], width, states.shape[3])
    fresh[: len(states), :, : states.shape[2]] = states[:rows, :, :width]
    return fresh


def cross_attention_layers(model: Any) -> tuple[int, ...]:
    """List the layers of a model that read vision by cross-attention."""
    return tuple(getattr(model.config.get_text_config(), "cross_attention_layers", None) or ())


@contextmanager
def skipping(
    model: Any, layers: Sequence[int], cache: Callable[[], Cache | None]
) -> Iterator[None]:
    """Let cross-attention layers leave the rows of withdrawn slots as they are in decode steps.

    Where all slots are withdrawn, transformers skips the layer itself. `cache` tells the slots'
    cache during a decode step, else None. The hooks are removed on the way out.

    Raises:
        NotExact: the decoder's layers aren't where transformers has them.
    """
    with ExitStack() as stack:
        for number in layers:
            decoder = model.get_decoder()
            if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
                raise NotExact("its decoder has no list of layers")
            hook = partial(_restore_skipped, number, cache)
            handle = decoder.layers[number].register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _restore_skipped(
    number: int,
    cache: Callable[[], Cache | None],
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> Any:
    current = cache()
    skipped = None if current is None else current.layers[number].skipped()
    if skipped is None:
        return output
    before = args[0] if args else kwargs["hidden_states"]  # (active, 1, D)
    if not isinstance(output, Tensor):
        raise NotExact(f"layer {number} returns more than its hidden states")
    # In a model that is spread over devices, the layer before may have left it on another.
    return torch.where(skipped[:, None, None], before.to(output.device), output)
