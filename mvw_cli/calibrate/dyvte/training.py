"""Labelled questions, and the training of gates on them: a random layer per batch, as published.

Cross-entropy on the labels, AdamW without weight decay. The model is not needed any more. A
training that was interrupted goes on from its checkpoint, and ends with the same gates.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mvw_cli.calibrate.dyvte.gates import HIDDEN, Gate, scores
from mvw_cli.errors import UsageProblem
from mvw_cli.files import replacing

PUBLISHED_LR = 6e-5
"""arXiv 2411.19628 trains with it, on 1 % of LLaVA-1.5's 665,000 samples, in batches of 128."""
_PATIENCE = 20
"""Checkpoints take at most one part in so many of the time."""

Progress = Callable[[int, int, float], None]
"""Called with the batches done, those in all, and the loss of late."""


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


@dataclass(frozen=True, slots=True)
class Training:
    """How gates are trained."""

    lr: float = PUBLISHED_LR
    epochs: int = 30
    """How often each gate sees each question, on average."""
    batch: int = 16
    """Questions in a batch, all at one layer."""
    seed: int = 0

    def batches(self, questions: int, gates: int) -> int:
        """Count the batches of a training."""
        return self.epochs * gates * math.ceil(questions / self.batch)


def train(
    features: Tensor,
    labels: Tensor,
    training: Training,
    checkpoint: Path,
    *,
    device: torch.device | str = "cpu",
    checkpoint_s: float = 60.0,
    progress: Progress = lambda done, total, loss: None,
    stopping: Callable[[], bool] = lambda: False,
) -> list[Gate] | None:
    """Train one gate per layer; None where `stopping` said so, with a checkpoint on disk.

    Args:
        features: # (n, G, 2 H)
        labels: 1 where the vision may go.  # (n, G) long
        checkpoint: a file to go on from where it is of this very training; removed by nobody.
        checkpoint_s: seconds from one checkpoint to the next, at least.

    Returns:
        The gates, in float32.

    Raises:
        OSError: the checkpoint can't be written.
    """
    questions, count, width = features.shape
    run = _TrainingRun(count, width, training, device)
    name = _name(features, labels, training)
    run.resume(checkpoint, name)
    total = training.batches(questions, count)
    saved, took = time.monotonic(), 0.0
    recent: float | None = None
    while run.done < total:
        now = time.monotonic()
        wanted = stopping()
        if wanted or now - saved > max(checkpoint_s, _PATIENCE * took):
            run.save(checkpoint, name)
            saved = time.monotonic()
            took = saved - now
        if wanted:
            return None
        loss = run.step(features, labels)
        recent = loss if recent is None else 0.98 * recent + 0.02 * loss
        if run.done % 50 == 0:
            progress(run.done, total, recent)
    run.save(checkpoint, name)
    return [(one.detach(), two.detach(), three.detach()) for one, two, three in run.gates]


class _TrainingRun:
    """Gates, their optimiser, and the random numbers that come next."""

    def __init__(
        self, count: int, width: int, training: Training, device: torch.device | str
    ) -> None:
        self._training, self._device = training, device
        self._random = torch.Generator().manual_seed(training.seed)
        self.gates: list[Gate] = [_initial(width, self._random, device) for _ in range(count)]
        # Gates of layers that are not drawn have no gradient in a step, and do not move on.
        self._optimiser = torch.optim.AdamW(
            [parameter for gate in self.gates for parameter in gate],
            lr=training.lr,
            weight_decay=0.0,
        )
        self.done = 0
        """Batches."""

    def step(self, features: Tensor, labels: Tensor) -> float:
        """Train on one batch; return its loss."""
        layer = int(torch.randint(len(self.gates), (1,), generator=self._random))
        rows = torch.randperm(len(features), generator=self._random)[: self._training.batch]
        read = features[rows, layer].to(self._device, torch.float32)
        said = scores(self.gates[layer], read)  # (b, 2)
        loss = functional.cross_entropy(said, labels[rows, layer].to(self._device))
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self.done += 1
        return float(loss.detach())

    def save(self, path: Path, name: str) -> None:
        state = {
            "name": name,
            "done": self.done,
            "random": self._random.get_state(),
            "gates": self.gates,
            "optimiser": self._optimiser.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with replacing(path) as file:
            file.write(buffer.getbuffer())

    def resume(self, path: Path, name: str) -> None:
        """Go on from a checkpoint of the same training; any other is left alone."""
        with suppress(Exception):  # whatever it holds, training can start afresh
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["name"] != name:
                return
            with torch.no_grad():
                for gate, kept in zip(self.gates, state["gates"], strict=True):
                    for parameter, value in zip(gate, kept, strict=True):
                        parameter.copy_(value)
            self._optimiser.load_state_dict(state["optimiser"])
            self._random.set_state(state["random"])
            self.done = state["done"]


def _initial(width: int, random: torch.Generator, device: torch.device | str) -> Gate:
    """Draw a gate as `torch.nn.Linear` does, from a generator of its own.

    Each number is uniform within one over the square root of the inputs.
    """

    def drawn(inputs: int, *shape: int) -> Tensor:
        values = (2 * torch.rand(shape, generator=random) - 1) / math.sqrt(inputs)
        return values.to(device).requires_grad_()

    return drawn(width, HIDDEN, width), drawn(HIDDEN, 2, HIDDEN), drawn(HIDDEN, 2)


def _name(features: Tensor, labels: Tensor, training: Training) -> str:
    """Name a training by all that decides its outcome."""
    named = hashlib.sha256(json.dumps(asdict(training), sort_keys=True).encode())
    for tensor in (features, labels):
        named.update(str((tensor.shape, tensor.dtype)).encode())
        named.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return named.hexdigest()
