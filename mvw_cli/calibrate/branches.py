"""Every layer's withdrawal tried in one forward pass: what the first tokens would be chosen from.

Branch K is the prompt whose vision leaves before decoder layer K, as VTW has it. Up to layer K it
is the full run; from there on it is text alone, with the positions it had. So one full run feeds
all branches: before layer K its text rows become a new branch, and the branches that have begun
are run through layer K together, since they are all of one length. The last layer hands the
branches' last rows to the model's own end (norm, head, whatever it does to logits) behind its own.

In Mllama vision is no part of the rows. There branch K passes by the cross-attention layers from K
on, or keeps their gated MLP; between two of them all branches are the same.

Whatever shows that the branches would not be exact raises `NotExact`: the caller has a slower way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from mvw_cli.adapter import VisionLayout
from mvw_cli.engine.attention import tempered_layers
from mvw_cli.engine.cache import layer_kinds
from mvw_cli.engine.layer_exits import cut_rows, decoder_layers, hidden_of, silent
from mvw_cli.engine.layers import cross_attention_layers
from mvw_cli.engine.prefill import prepare
from mvw_cli.engine.types import GenerationSettings, NotExact
from mvw_cli.oracle.masked import extended

T = TypeVar("T")
CrossAttention = Literal["skip", "mlp"]
LOGIT_BYTES = 2**28
"""Of the logits of one pass, in float32; with more, the branches go in several passes."""


@torch.inference_mode()
def branch_logits(
    model: Any,
    inputs: Mapping[str, Tensor],
    layout: VisionLayout,
    starts: Sequence[int],
    *,
    tokens: int = 1,
    cross_attention: CrossAttention = "skip",
) -> Tensor:
    """Run the full model and all branches; return the logits of the last rows of each.

    Cost: the full prompt once, and for each layer the text of the branches that have begun. Memory
    on top of the full run's: B x R rows of hidden states, and (1 + B) x `tokens` rows of logits.
    A layer never reads more rows of branches at once than the full prompt has.

    Args:
        inputs: model inputs of one sequence, `input_ids` # (1, P); the served model's device.
        starts: layers before which vision leaves, in ascending order; 0 is before the first. For
            cross-attention they are such layers.
        tokens: last rows of the sequence.

    Returns:
        # (1 + B, tokens, V), the full run first, on the model's device.

    Raises:
        NotExact: the model's layers can't be run this way.
    """
    cross_layers = cross_attention_layers(model) if layout.cross_entries is not None else ()
    text = model.config.get_text_config()
    if not all(kind.holds for kind in layer_kinds(DynamicCache(config=text), text)):
        # A state reads rows in their order, and what is shared has been made of the full run's.
        raise NotExact("not every layer keeps entries of its own")
    if tempered_layers(model):
        raise NotExact("a layer scales its queries by how many there are before them")
    layers = decoder_layers(model)
    prompt = int(inputs["input_ids"].shape[1])
    vision = torch.zeros(prompt, dtype=torch.bool) if cross_layers else layout.entries.cpu()
    if bool(vision[prompt - tokens :].any()):
        raise NotExact("its prompt ends with a vision token")
    branches = _Branches(
        starts=starts,
        rows=(~vision).nonzero()[:, 0],
        length=prompt,
        tokens=tokens,
        cross_layers=cross_layers,
        keep_mlp=cross_attention == "mlp",
    )
    wanted = (1 + len(starts)) * tokens
    prepared = prepare(model, inputs, GenerationSettings(max_new_tokens=1, temperature=0))
    model_inputs = model.prepare_inputs_for_generation(
        prepared.input_ids, is_first_iteration=True, **prepared.model_kwargs
    )
    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            before = partial(branches.before, number)
            after = partial(branches.after, number, number == len(layers) - 1)
            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(after, with_kwargs=True).remove)
        output = model(**{**model_inputs, "logits_to_keep": wanted}, return_dict=True)
    if branches.ran != len(layers):
        raise NotExact("not every layer has run")
    logits: Tensor = output.logits
    if logits.ndim != 3 or logits.shape[1] not in (wanted, prompt + len(starts) * tokens):
        raise NotExact("its logits are not those of the rows that its last layer returns")
    return logits[0, -wanted:].reshape(1 + len(starts), tokens, -1)


def judge_layers(
    model: Any,
    inputs: Mapping[str, Tensor],
    layout: VisionLayout,
    judge: Callable[[Tensor, Tensor], T],
    answer: Sequence[int] = (),
    *,
    first: int = 0,
    cross_attention: CrossAttention = "skip",
    tick: Callable[[], None] = lambda: None,
) -> list[T]:
    """Compare the run whose vision leaves before a layer with the full run, for each layer.

    All go along one answer, in as few passes as memory allows.

    Args:
        inputs, layout: of the prompt.
        judge: called with the logits of both along the answer, # (T, V).
        answer: its T tokens; without them the first token alone is looked at, and T is 1.
        first: the first layer that is tried.
        tick: called after each pass; what it raises ends the comparison.

    Returns:
        What `judge` says of the layers from `first` on; last of all, of the full run itself.

    Raises:
        NotExact: as `branch_logits`.
    """
    layers = len(decoder_layers(model))
    cross_layers = cross_attention_layers(model) if layout.cross_entries is not None else ()
    starts = [layer for layer in cross_layers or range(layers) if layer >= first]
    rows = max(1, len(answer))
    if rows > 1:
        # Nothing is asked of what follows the last token, so it is not read.
        inputs = extended(model, inputs, answer[:-1])
        more = torch.zeros(rows - 1, dtype=torch.bool)
        layout = replace(layout, entries=torch.cat([layout.entries.cpu(), more]))
    vocabulary = int(model.config.get_text_config().vocab_size)
    size = max(1, LOGIT_BYTES // (4 * rows * vocabulary) - 1)
    found: dict[int, T] = {}
    for begin in range(0, max(1, len(starts)), size):
        group = starts[begin : begin + size]
        full, *branches = branch_logits(
            model, inputs, layout, group, tokens=rows, cross_attention=cross_attention
        )
        tick()
        for start, branch in zip((*group, layers), (*branches, full), strict=True):
            found[start] = judge(branch, full)
    # Between two cross-attention layers vision does not matter, nor after the last one.
    return [
        found[next(start for start in (*starts, layers) if start >= layer)]
        for layer in range(first, layers + 1)
    ]


@dataclass(slots=True)
class _Branches:
    """The branches of one pass, and the hooks that let the decoder layers take them along."""

    starts: Sequence[int]
    rows: Tensor
    """Places of the rows that a branch has.  # (R,) long"""
    length: int
    """Rows of the full run."""
    tokens: int
    """Last rows whose logits are wanted."""
    cross_layers: Sequence[int]
    keep_mlp: bool
    begun: Tensor | None = None
    """One branch after the other.  # (B, R, D)"""
    returned: Tensor | None = None
    """What the layer before has made of the full run's rows that branches have.  # (1, R, D)"""
    ran: int = 0
    """Layers that have run."""

    def before(
        self, number: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Begin a branch where one starts."""
        hidden = hidden_of(args, kwargs)
        if hidden.ndim != 3 or hidden.shape[:2] != (1, self.length):
            raise NotExact(f"layer {number} does not read the prompt as it is")
        text = hidden[:, self.rows.to(hidden.device)]
        if self.returned is not None and not torch.equal(self.returned.to(text.device), text):
            raise NotExact(f"what layer {number} reads is not what the layer before has returned")
        if number in self.starts:
            begun = [] if self.begun is None else [self.begun.to(text.device)]
            self.begun = torch.cat([*begun, text])

    def after(
        self,
        number: int,
        is_last: bool,
        layer: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> Any:
        """Run the branches through the layer; behind the last one, lay them behind the full run."""
        first = _states(output)
        if not isinstance(first, Tensor) or first.shape[:2] != (1, self.length):
            raise NotExact(f"layer {number} does not return the rows that it reads")
        self.ran += 1
        self.returned = first[:, self.rows.to(first.device)]
        if self.begun is None:
            return None
        if number not in self.cross_layers or self.keep_mlp:
            self.begun = self._through(self.begun, number, layer, args, kwargs)
        if not is_last:
            return None
        ends = self.begun[:, -self.tokens :].to(first.device)  # (B, tokens, D)
        longer = torch.cat([first, ends.reshape(1, -1, first.shape[-1])], dim=1)
        return (longer, *output[1:]) if isinstance(output, tuple) else longer

    def _through(
        self,
        begun: Tensor,
        number: int,
        layer: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Run one layer for all branches.  # (B, R, D)"""
        if len(args) > 1:
            raise NotExact(f"layer {number} takes more than its hidden states by position")
        device = hidden_of(args, kwargs).device
        rows = self.rows.to(device)
        given = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        if len(rows) < self.length:
            given = {
                name: cut_rows(number, name, value, rows, self.length)
                for name, value in given.items()
            }
        for name, value in (("cache", None), ("past_key_values", None), ("use_cache", False)):
            if name in given:
                given[name] = value
        size = max(1, self.length // len(rows))
        with ExitStack() as stack:
            if number in self.cross_layers:
                # Without states of their own the keys would be asked of a cache; what they give
                # counts for nothing here. The states are those of one sequence.
                stack.enter_context(silent(layer.cross_attn))
                size = 1
            # Not `layer(...)`: its hooks are for the model's own run.
            done = [layer.forward(part, **given) for part in torch.split(begun.to(device), size)]
        return torch.cat([_states(one) for one in done])


def _states(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output
