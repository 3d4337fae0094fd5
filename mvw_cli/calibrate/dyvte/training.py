"""Labelled questions, and the training of gates on them: a random layer per batch, as published.

Cross-entropy on the labels, AdamW without weight decay. The model is not needed any more.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mvw_cli.calibrate.dyvte.gates import HIDDEN, Gate, scores
from mvw_cli.errors import UsageProblem

PUBLISHED_LR = 6e-5
"""arXiv 2411.19628 trains with it, on 1 % of LLaVA-1.5's 665,000 samples, in batches of 128."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Labelled questions; n of them, and G gates."""

    questions: tuple[Mapping[str, Any], ...]
    """As the store has them."""
    features: Tensor
    """# (n, G, 2 H)"""
    agreement: Tensor
    """# (n, G) float32"""
    loss: Tensor
    """# (n, G) float32"""
    full_loss: Tensor
    """# (n,) float32"""

    def of(self, rows: Sequence[int]) -> Dataset:
        """Take some of the questions."""
        chosen = list(rows)
        tensors = (self.features, self.agreement, self.loss, self.full_loss)
        return Dataset(
            tuple(self.questions[row] for row in chosen), *(one[chosen] for one in tensors)
        )

    def images(self, row: int) -> tuple[str, ...]:
        """Digests of a question's images."""
        return tuple(self.questions[row]["sha256"])


def split(dataset: Dataset, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Draw the images to train on and those to judge by; none is in both.

    Returns:
        Rows of the dataset: to train on, and held out.

    Raises:
        UsageProblem: all questions are about the same image.
    """

    def drawn(images: tuple[str, ...]) -> str:
        return hashlib.sha256(f"{seed}:{','.join(images)}".encode()).hexdigest()

    rows = range(len(dataset.questions))
    groups = sorted({dataset.images(row) for row in rows}, key=drawn)
    if len(groups) < 2:
        raise UsageProblem(
            "Gates can't be trained and judged on one image",
            cause="images are parted in those to train on and those to judge by",
            hint="mvw calibrate dyvte --images DIR",
        )
    apart = set(groups[: min(max(1, round(held_out * len(groups))), len(groups) - 1)])
    return (
        [row for row in rows if dataset.images(row) not in apart],
        [row for row in rows if dataset.images(row) in apart],
    )


def train(
    features: Tensor,
    labels: Tensor,
    *,
    lr: float = PUBLISHED_LR,
    epochs: int = 30,
    batch: int = 16,
    seed: int = 0,
    device: torch.device | str = "cpu",
    tick: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> list[Gate]:
    """Train one gate per layer; the same seed gives the same gates.

    Args:
        features: # (n, G, 2 H)
        labels: 1 where the vision may go.  # (n, G) long
        epochs: how often each gate sees each question, on average.
        batch: questions in a batch, all at one layer.
        tick: called after each batch with the batches done, those in all, and its loss; what it
            raises ends the training.

    Returns:
        The gates, in float32.
    """
    questions, count, width = features.shape
    random = torch.Generator().manual_seed(seed)
    gates = [_initial(width, random, device) for _ in range(count)]
    # Gates of layers that are not drawn have no gradient in a step, and do not move on.
    optimiser = torch.optim.AdamW(
        [parameter for gate in gates for parameter in gate], lr=lr, weight_decay=0.0
    )
    total = epochs * count * math.ceil(questions / batch)
    for done in range(1, total + 1):
        layer = int(torch.randint(count, (1,), generator=random))
        rows = torch.randperm(questions, generator=random)[:batch]
        read = features[rows, layer].to(device, torch.float32)
        said = scores(gates[layer], read)  # (b, 2)
        loss = functional.cross_entropy(said, labels[rows, layer].to(device))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        tick(done, total, float(loss.detach()))
    return [(one.detach(), two.detach(), three.detach()) for one, two, three in gates]


def _initial(width: int, random: torch.Generator, device: torch.device | str) -> Gate:
    """Draw a gate as `torch.nn.Linear` does, from a generator of its own.

    Each number is uniform within one over the square root of the inputs.
    """

    def drawn(inputs: int, *shape: int) -> Tensor:
        values = (2 * torch.rand(shape, generator=random) - 1) / math.sqrt(inputs)
        return values.to(device).requires_grad_()

    return drawn(width, HIDDEN, width), drawn(HIDDEN, 2, HIDDEN), drawn(HIDDEN, 2)
