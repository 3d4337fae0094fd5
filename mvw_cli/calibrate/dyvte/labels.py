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
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mvw_cli.adapter import VisionLayout
from mvw_cli.calibrate.branches import CrossAttention, judge_layers
from mvw_cli.calibrate.dyvte.gates import features
from mvw_cli.engine.layer_exits import hidden_of

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
    cross_attention: CrossAttention = "skip",
) -> GateExample:
    """Read a prompt and an answer with all exits.

    Args:
        inputs: model inputs of the prompt, `input_ids` # (1, P), on the model's device.
        output_ids: the T tokens of the answer, one at least.

    Raises:
        NotExact: the model's layers can't be run this way.
    """
    answer = torch.tensor(list(output_ids), device=model.device)  # (T,)

    def judge(branch: Tensor, full: Tensor) -> tuple[float, float]:
        same = (branch.argmax(-1) == full.argmax(-1)).float().mean()
        return float(same), float(
            functional.cross_entropy(branch.float(), answer.to(branch.device))
        )

    seen: list[Tensor] = []
    with _features_of(model, seen, inputs["input_ids"].shape[1], layout):
        *exits, (_, full_loss) = judge_layers(
            model, inputs, layout, judge, output_ids, first=1, cross_attention=cross_attention
        )
    agreement, loss = torch.tensor(exits).T
    return GateExample(torch.stack(seen[1 : 1 + len(exits)]), agreement, loss, full_loss)


@contextmanager
def _features_of(
    model: Any, seen: list[Tensor], prompt: int, layout: VisionLayout
) -> Iterator[None]:
    """Note what gates would read before each layer, in its order; remove all hooks after."""
    entries = layout.entries.cpu()
    text = (~entries).nonzero()[:, 0]
    image_end = int(entries.nonzero()[-1]) + 1 if entries.any() else 0

    def note(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(features(hidden_of(args, kwargs)[0, :prompt], text, image_end).cpu())

    with ExitStack() as stack:
        for layer in model.get_decoder().layers:
            stack.callback(layer.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield
