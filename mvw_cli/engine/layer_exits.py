"""Vision tokens that leave in the middle of a prefill: a policy is asked before each layer.

The rows of those that have left are cut out of what a decoder layer reads, by hooks on unmodified
layers, and what it returns is laid back among them, so that whatever the model does between its
layers finds the length that it expects. A layer's cache gets the rows that the layer has read.

Cross-attention layers get fewer vision states; without any they are skipped, or keep their gated
MLP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mvw_cli.engine.attention_probe import PrefillProbe
from mvw_cli.engine.cache import LayerKind
from mvw_cli.engine.types import NotExact
from mvw_cli.engine.vision import Vision, per_layer
from mvw_cli.errors import UsageProblem
from mvw_cli.policy import LayerView, Select

_ALONG = {
    "hidden_states": (-2,),
    "attention_mask": (-2, -1),
    "position_ids": (-1,),
    "cache_position": (-1,),
    "position_embeddings": (-2,),
    "position_embeddings_global": (-2,),
    "position_embeddings_local": (-2,),
    "per_layer_input": (-2,),
}
"""Arguments of decoder layers that run along the sequence, and their dimensions that do."""
rows_read: ContextVar[Tensor | None] = ContextVar("rows_read", default=None)
"""Places in the prompt of the rows that the running layer reads, where some have left: # (K,)."""
_NOT_ALONG = ("cross_attention_states", "cross_attention_mask", "full_text_row_masked_out_mask")
"""Arguments that belong to cross-attention, and are cut in `_fewer_states` where at all."""


class Selection:
    """What a policy has chosen during one prefill.

    Raises:
        UsageProblem: no token may leave in the prefill of such a model.
    """

    def __init__(
        self,
        vision: Vision,
        select: Select,
        kinds: Sequence[LayerKind],
        probe: PrefillProbe | None,
    ) -> None:
        self.vision = vision
        self.present = torch.ones(vision.tokens, dtype=torch.bool)
        """# (N,) bool, on the host"""
        self.by_layer: dict[int, Tensor] = {}
        """What each layer has read.  # (N,) bool"""
        self._select = select
        self._kinds = kinds
        sharing = [n for n, kind in enumerate(kinds) if kind.producer is not None]
        if sharing:
            raise _stuck(f"layer {sharing[0]} reads what layer {kinds[sharing[0]].producer} holds")
        self._probe = probe
        self._text, self._image_end = torch.arange(vision.prompt), 0
        if vision.tokens and not vision.cross_attention:
            self._text = self._text[vision.numbers < 0]
            self._image_end = int(vision.places[-1]) + 1

    def ask(self, number: int, hidden: Tensor) -> Tensor:
        """Ask the policy before a layer; return what it reads: # (N,) bool.

        hidden: # (1, P, D)

        Raises:
            UsageProblem: a layer can't do without what the policy has taken.
        """
        view = LayerView(
            layer=number,
            num_layers=len(self._kinds),
            present=self.present.clone(),
            images=self.vision.images,
            grids=self.vision.grids,
            hidden_states=hidden[0],
            text=self._text,
            image_end=self._image_end,
            weights=None if self._probe is None else self._probe.before(number),
        )
        chosen = self._select(view)
        if chosen is not None:
            left = self.present & chosen.cpu()
            if not torch.equal(left, self.present):
                self._check_leaving(number)
            # The same object as long as nothing changes: who reads it later tells by that.
            self.present = self.present if torch.equal(left, self.present) else left
            if self._probe is not None:
                self._probe.present = self.present
        self.by_layer[number] = self.present
        return self.present

    def _check_leaving(self, number: int) -> None:
        """Check that tokens may leave before a layer: a recurrent one has to read them all."""
        for layer, kind in enumerate(self._kinds):
            if layer >= number and kind.states:
                raise _stuck(f"layer {layer} keeps a recurrent state, which they would be out of")

    def left(self, layers: Sequence[int]) -> bool:
        """Whether any of these layers has read vision."""
        return any(bool(self.by_layer[layer].any()) for layer in layers)

    def held(self, layers: Sequence[int]) -> dict[int, Tensor]:
        """Return what these layers have read, for `SlotCache.load`: # (K,) long each."""
        fewer = {one: self.by_layer[one] for one in layers if not bool(self.by_layer[one].all())}
        return per_layer(self.read, fewer)

    def read(self, present: Tensor) -> Tensor:
        """Return what a layer reads where these vision tokens are there: # (K,) long.

        Places of the prompt, or vision tokens of a cross-attention layer.
        """
        return (~self.vision.entries(~present)).nonzero()[:, 0]


def _stuck(cause: str) -> UsageProblem:
    return UsageProblem(
        "The policy can't take vision tokens away in the prefill of this model",
        cause=f"{cause}; policies that act while it writes can be used, such as mvw",
        hint="mvw list policies",
    )


@contextmanager
def selecting(
    model: PreTrainedModel, selection: Selection, cross_layers: Sequence[int], *, keep_mlp: bool
) -> Iterator[None]:
    """Let a selection decide what each decoder layer reads; restore the model on the way out.

    Raises:
        NotExact: the decoder's layers aren't where transformers has them, or take arguments whose
            rows can't be told.
    """
    with ExitStack() as stack:
        stack.callback(rows_read.set, None)
        for number, layer in enumerate(decoder_layers(model)):
            if number in cross_layers and selection.vision.cross_attention:
                stack.enter_context(_cross_layer(layer, number, selection, keep_mlp))
                continue
            cut = _Cut(number, selection)
            hook = layer.register_forward_pre_hook(cut.before, with_kwargs=True)
            stack.callback(hook.remove)
            stack.callback(layer.register_forward_hook(cut.after).remove)
        yield


class _Cut:
    """The hooks of one layer that reads vision in the sequence."""

    def __init__(self, number: int, selection: Selection) -> None:
        self._number, self._selection = number, selection
        self._whole: Tensor | None = None
        self._rows: Tensor | None = None

    def before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        selection = self._selection
        hidden = hidden_of(args, kwargs)
        length = selection.vision.prompt
        if hidden.shape[1] != length:
            raise NotExact(f"layer {self._number} does not read the prompt as it is")
        present = selection.ask(self._number, hidden)
        if bool(present.all()) or selection.vision.cross_attention:
            return None  # with cross-attention no vision is among the rows
        # Positions are not renumbered: ids, rotary phases and mask are cut to the same rows as the
        # hidden states, so that each row that stays is read as if the others were masked.
        self._whole, self._rows = hidden, selection.read(present).to(hidden.device)
        if int(self._rows[-1]) != length - 1:
            # The first token comes out of the last row.
            raise NotExact("its prompt ends with a vision token")
        rows_read.set(self._rows)
        cut = partial(cut_rows, self._number, rows=self._rows, length=length)
        # Where a layer takes more by position, Gemma 3n's, it is what runs along with the states.
        return (
            tuple(cut("hidden_states", one) for one in args),
            {name: cut(name, value) for name, value in kwargs.items()},
        )

    def after(self, layer: nn.Module, args: object, output: Any) -> Any:
        whole, rows = self._whole, self._rows
        self._whole = None
        rows_read.set(None)
        if whole is None or rows is None:
            return None
        first = output[0] if isinstance(output, tuple) else output
        rows = rows.to(first.device)
        full = whole.to(first.device).index_copy(1, rows, first)
        return (full, *output[1:]) if isinstance(output, tuple) else full


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return a model's decoder; Llama 4 has it within a language model with a head of its own."""
    outer: Any = model.get_decoder()
    inner: nn.Module = outer if hasattr(outer, "layers") else getattr(outer, "model", outer)
    return inner


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the layers of a model's decoder.

    Raises:
        NotExact: they aren't where transformers has them.
    """
    layers = getattr(decoder_of(model), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise NotExact("its decoder has no list of layers")
    return layers


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states that a layer is called with."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def cut_rows(number: int, name: str, value: Any, rows: Tensor, length: int) -> Any:
    """Cut an argument of a layer to the rows that it reads."""
    if isinstance(value, tuple | list):
        return type(value)(cut_rows(number, name, one, rows, length) for one in value)
    if not isinstance(value, Tensor) or name in _NOT_ALONG:
        return value
    dimensions = _ALONG.get(name)
    if dimensions is None:
        if length in value.shape:
            raise NotExact(f"layer {number} takes `{name}`, whose rows can't be told")
        return value
    for dimension in dimensions:
        if value.ndim >= -dimension and value.shape[dimension] == length:
            value = value.index_select(dimension, rows.to(value.device))
    return value


@contextmanager
def _cross_layer(layer: Any, number: int, selection: Selection, keep_mlp: bool) -> Iterator[None]:
    """Let one cross-attention layer read the chosen vision states only, or none."""
    plain = layer.forward
    own = "forward" in vars(layer)

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = hidden_of(args, kwargs)
        present = selection.ask(number, hidden)
        if bool(present.all()):
            return plain(*args, **kwargs)
        if not present.any():
            if not keep_mlp:
                return hidden
            with silent(layer.cross_attn):
                return plain(*args, **kwargs)
        kwargs |= _fewer_states(kwargs, selection.vision.places[~present])
        lost = _lost(kwargs["cross_attention_mask"])
        if lost is None:
            return plain(*args, **kwargs)
        if keep_mlp:
            with silent(layer.cross_attn, lost):
                return plain(*args, **kwargs)
        output = plain(*args, **kwargs)
        return torch.where(lost.to(output.device), hidden.to(output.device), output)

    layer.forward = forward
    try:
        yield
    finally:
        if own:
            layer.forward = plain
        else:
            del layer.forward


def _fewer_states(kwargs: dict[str, Any], gone: Tensor) -> dict[str, Tensor]:
    """Cut some vision states out of what a cross-attention layer reads.

    Those of padding stay: transformers lets rows before an image attend to them.

    gone: # (K,) long, among the V states that the model makes
    """
    states, mask = kwargs["cross_attention_states"], kwargs["cross_attention_mask"]
    states = states.reshape(1, -1, states.shape[-1])
    staying = torch.ones(states.shape[1], dtype=torch.bool)
    staying[gone] = False
    kept = staying.nonzero()[:, 0]
    fewer = {"cross_attention_states": states[:, kept.to(states.device)]}
    if mask is not None:
        fewer["cross_attention_mask"] = mask[..., kept.to(mask.device)]
    return fewer


def _lost(mask: Tensor | None) -> Tensor | None:
    """Mark the rows that have none of the states left that they may attend to; None for no row.

    A softmax over nothing would be one over everything. Rows that see no image by themselves are
    not meant: transformers leaves their part of the mask at 0.

    mask: # (1, 1, P, K), added to the scores; returned: # (1, P, 1) bool
    """
    if mask is None:
        return None
    lost = (mask[:, 0] < 0).all(dim=-1, keepdim=True)
    return lost if bool(lost.any()) else None


@contextmanager
def silent(attention: nn.Module, rows: Tensor | None = None) -> Iterator[None]:
    """Let an attention contribute nothing, to some rows or to all.  rows: # (1, P, 1) bool"""

    def nothing(
        module: nn.Module, args: object, output: tuple[Tensor, Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        if rows is None:
            return torch.zeros_like(output[0]), output[1]
        return output[0].masked_fill(rows.to(output[0].device), 0), output[1]

    hook = attention.register_forward_hook(nothing)
    try:
        yield
    finally:
        hook.remove()
