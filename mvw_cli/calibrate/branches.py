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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mvw_cli.adapter import VisionLayout
from mvw_cli.engine.layer_exits import cut_rows, hidden_of, silent
from mvw_cli.engine.layers import cross_attention_layers
from mvw_cli.engine.prefill import prepare
from mvw_cli.engine.types import GenerationSettings, NotExact
from mvw_cli.oracle.masked import extended

LOGIT_BYTES = 2**28
"""Of the logits of one pass, in float32; with more, the branches go in several passes."""


@dataclass(slots=True)
class _Branches:
    """What is known while the layers go by."""

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
    busy: bool = False
    """Whether the layer runs for the branches, and not for the model."""
    seen: set[int] = field(default_factory=set)


@torch.inference_mode()
def branch_logits(
    model: Any,
    inputs: Mapping[str, Tensor],
    layout: VisionLayout,
    starts: Sequence[int],
    *,
    tokens: int = 1,
    cross_attention: Literal["skip", "mlp"] = "skip",
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
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise NotExact("its decoder has no list of layers")
    prompt = int(inputs["input_ids"].shape[1])
    hidden = torch.zeros(prompt, dtype=torch.bool) if cross_layers else layout.entries.cpu()
    if bool(hidden[prompt - tokens :].any()):
        raise NotExact("its prompt ends with a vision token")
    run = _Branches(
        starts=list(starts),
        rows=(~hidden).nonzero()[:, 0],
        length=prompt,
        tokens=tokens,
        cross_layers=cross_layers,
        keep_mlp=cross_attention == "mlp",
    )
    wanted = (1 + len(run.starts)) * tokens
    prepared = prepare(model, inputs, GenerationSettings(max_new_tokens=1, temperature=0))
    model_inputs = model.prepare_inputs_for_generation(
        prepared.input_ids, is_first_iteration=True, **prepared.model_kwargs
    )
    with _branching(layers, run):
        output = model(**{**model_inputs, "logits_to_keep": wanted}, return_dict=True)
    if len(run.seen) != len(layers):
        raise NotExact("not every layer has run")
    logits: Tensor = output.logits
    added = len(run.starts) * tokens
    if logits.ndim != 3 or logits.shape[1] not in (wanted, prompt + added):
        raise NotExact("its logits are not those of the rows that its last layer returns")
    return logits[0, -wanted:].reshape(1 + len(run.starts), tokens, -1)


def branches_along(
    model: Any,
    inputs: Mapping[str, Tensor],
    layout: VisionLayout,
    starts: Sequence[int],
    answer: Sequence[int] = (),
    *,
    cross_attention: Literal["skip", "mlp"] = "skip",
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Run all branches along an answer, in as few passes as memory allows.

    Args:
        inputs, layout: of the prompt.
        answer: its T tokens; without them the first token alone is looked at, and T is 1.

    Yields:
        The starts of a pass, and its logits # (1 + B, T, V), the full run first.

    Raises:
        NotExact: as `branch_logits`.
    """
    rows = max(1, len(answer))
    if rows > 1:
        # Nothing is asked of what follows the last token, so it is not read.
        inputs = extended(inputs, answer[:-1])
        more = torch.zeros(rows - 1, dtype=torch.bool)
        layout = replace(layout, entries=torch.cat([layout.entries.cpu(), more]))
    vocabulary = int(model.config.get_text_config().vocab_size)
    size = max(1, LOGIT_BYTES // (4 * rows * vocabulary) - 1)
    for first in range(0, max(1, len(starts)), size):
        group = starts[first : first + size]
        yield (
            group,
            branch_logits(
                model, inputs, layout, group, tokens=rows, cross_attention=cross_attention
            ),
        )


@contextmanager
def _branching(layers: nn.ModuleList, run: _Branches) -> Iterator[None]:
    """Let each layer take the branches along; the hooks are removed on the way out."""
    last = len(layers) - 1
    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            before = partial(_before, run, number)
            after = partial(_after, run, number, number == last)
            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(after, with_kwargs=True).remove)
        yield


def _before(
    run: _Branches, number: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Begin a branch where one starts."""
    if run.busy:
        return
    hidden = hidden_of(args, kwargs)
    if hidden.ndim != 3 or hidden.shape[:2] != (1, run.length):
        raise NotExact(f"layer {number} does not read the prompt as it is")
    text = hidden[:, run.rows.to(hidden.device)]
    if run.returned is not None and not torch.equal(run.returned.to(text.device), text):
        raise NotExact(f"what layer {number} reads is not what the layer before has returned")
    if number in run.starts:
        moved = None if run.begun is None else run.begun.to(text.device)
        run.begun = text if moved is None else torch.cat([moved, text])


def _after(
    run: _Branches,
    number: int,
    is_last: bool,
    layer: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> Any:
    """Run the branches through the layer; behind the last one, lay them behind the full run."""
    if run.busy:
        return None
    first = output[0] if isinstance(output, tuple) else output
    if not isinstance(first, Tensor) or first.shape[:2] != (1, run.length):
        raise NotExact(f"layer {number} does not return the rows that it reads")
    run.seen.add(number)
    run.returned = first[:, run.rows.to(first.device)]
    if run.begun is not None and not (number in run.cross_layers and not run.keep_mlp):
        run.busy = True
        try:
            run.begun = _through(run, number, layer, args, kwargs)
        finally:
            run.busy = False
    if not is_last or run.begun is None:
        return None
    ends = run.begun[:, -run.tokens :].to(first.device)  # (B, tokens, D)
    longer = torch.cat([first, ends.reshape(1, -1, first.shape[-1])], dim=1)
    return (longer, *output[1:]) if isinstance(output, tuple) else longer


def _through(
    run: _Branches, number: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """Run one layer for all branches.  # (B, R, D)"""
    assert run.begun is not None
    if len(args) > 1:
        raise NotExact(f"layer {number} takes more than its hidden states by position")
    device = hidden_of(args, kwargs).device
    rows = run.rows.to(device)
    whole = len(rows) == run.length
    without = {"past_key_values": None, "use_cache": False}
    given = {
        name: value if whole else cut_rows(number, name, value, rows, run.length)
        for name, value in kwargs.items()
        if name not in ("hidden_states", *without)
    }
    given |= {name: value for name, value in without.items() if name in kwargs}
    size = max(1, run.length // len(rows))
    done = []
    with ExitStack() as stack:
        if number in run.cross_layers:
            # Without states of their own the keys would be asked of a cache; what they give counts
            # for nothing here.
            stack.enter_context(silent(layer.cross_attn))
        for chunk in torch.split(run.begun.to(device), size):
            if number in run.cross_layers:
                pieces = [layer(one[None], **given) for one in chunk]
                done += [_states(piece) for piece in pieces]
            else:
                done.append(_states(layer(chunk, **given)))
    return torch.cat(done)


def _states(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
