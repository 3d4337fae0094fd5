"""What one question has to teach the gates: at each layer, what they read, and what exit costs.

The model reads the prompt and an answer once, and along with it all branches without vision (see
`branches.py`), so that every layer of a question is labelled for little more than one pass. Gate l
decides about an exit before layer l + 1; a label is made of agreement and loss by `labels`, so that
other bounds need no second pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from mvw_cli.adapter import VisionLayout
from mvw_cli.calibrate.branches import branches_along
from mvw_cli.calibrate.dyvte.gates import features
from mvw_cli.engine.layers import cross_attention_layers

AGREEMENT, LOSS_RATIO = 0.99, 1.03
"""Bounds of the published labels (arXiv 2411.19628)."""


@dataclass(frozen=True, slots=True, eq=False)
class GateExample:
    """One question, at all gates; G is one less than the decoder layers."""

    features: Tensor
    """What each gate reads.  # (G, 2 H), of the model's dtype"""
    agreement: Tensor
    """Share of the answer's tokens whose likeliest token stays what it is with the vision.
    # (G,) float32"""
    loss: Tensor
    """Mean cross-entropy along the answer, without vision from the next layer on, in nats.
    # (G,) float32"""
    full_loss: float
    """The same with the vision."""


def labels(
    agreement: Tensor,
    loss: Tensor,
    full_loss: Tensor | float,
    *,
    min_agreement: float = AGREEMENT,
    loss_ratio: float = LOSS_RATIO,
) -> Tensor:
    """Label where the vision may go: 1 where it may.

    A loss that does not rise at all is within any ratio, also where it is 0.

    Returns:
        # shape of `agreement`, long
    """
    within = (loss < loss_ratio * full_loss) | (loss <= full_loss)
    return ((agreement > min_agreement) & within).long()


@torch.inference_mode()
def label_question(
    model: Any,
    inputs: Mapping[str, Tensor],
    layout: VisionLayout,
    output_ids: Sequence[int],
    *,
    cross_attention: Literal["skip", "mlp"] = "skip",
) -> GateExample:
    """Read a prompt and an answer with all exits.

    Args:
        inputs: model inputs of the prompt, `input_ids` # (1, P), on the model's device.
        output_ids: the T tokens of the answer, one at least.

    Raises:
        NotExact: the model's layers can't be run this way.
    """
    exits = range(1, len(model.get_decoder().layers))
    cross_layers = cross_attention_layers(model) if layout.cross_entries is not None else ()
    # Between two cross-attention layers there is nothing to exit from: one branch tells of all.
    starts = [layer for layer in cross_layers if layer > 0] if cross_layers else list(exits)
    told = [next((start for start in starts if start >= gate), None) for gate in exits]
    answer = torch.tensor(list(output_ids), device=model.device)  # (T,)
    seen: dict[int, Tensor] = {}
    found: dict[int | None, tuple[float, float]] = {}
    passes = branches_along(
        model, inputs, layout, starts, output_ids, cross_attention=cross_attention
    )
    with _features_of(model, seen, inputs["input_ids"].shape[1], layout):
        for group, logits in passes:
            whole = logits[0].argmax(-1)  # (T,)
            for start, one in zip([None, *group], logits, strict=True):
                same = (one.argmax(-1) == whole).float().mean()
                loss = functional.cross_entropy(one.float(), answer.to(one.device))
                found[start] = float(same), float(loss)
    return GateExample(
        torch.stack([seen[gate] for gate in exits]),
        torch.tensor([found[start][0] for start in told]),
        torch.tensor([found[start][1] for start in told]),
        found[None][1],
    )


@contextmanager
def _features_of(
    model: Any, seen: dict[int, Tensor], prompt: int, layout: VisionLayout
) -> Iterator[None]:
    """Note what gates would read, by the layer that is about to run; remove all hooks after."""
    entries = layout.entries.cpu()
    text = (~entries).nonzero()[:, 0]
    image_end = int(entries.nonzero()[-1]) + 1 if entries.any() else 0

    def note(number: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if number not in seen:  # the model's own call comes before those of the branches
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            seen[number] = features(hidden[0, :prompt], text, image_end).cpu()

    with ExitStack() as stack:
        for number, layer in enumerate(model.get_decoder().layers):
            hook = layer.register_forward_pre_hook(partial(note, number), with_kwargs=True)
            stack.callback(hook.remove)
        yield
