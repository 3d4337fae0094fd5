"""Labelled questions, parted in those to train on and those to judge by.

No image is in both parts. It does not know what is trained.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvw_cli.calibrate.dyvte.looks import labels
from mvw_cli.calibrate.dyvte.store import Table
from mvw_cli.errors import UsageProblem

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The questions by whether their images are trained on."""

    table: Table
    labels: Tensor
    """# (n, G) long"""
    training: list[int]
    """Rows of the table."""
    held_out: list[int]


def split(
    table: Table, held_out: float, seed: int, least_agreement: float, loss_ratio: float
) -> Parts:
    """Part the questions by their images, at random, and label them.

    Raises:
        UsageProblem: all questions are about the same image.
    """

    def drawn(images: tuple[str, ...]) -> str:
        return hashlib.sha256(f"{seed}:{','.join(images)}".encode()).hexdigest()

    groups = sorted({entry.images for entry in table.entries}, key=drawn)
    if len(groups) < 2:
        raise UsageProblem(
            "Gates can't be trained and judged on one image",
            cause="images are parted in those to train on and those to judge by",
            hint="mvw calibrate dyvte --images DIR",
        )
    count = min(max(1, round(held_out * len(groups))), len(groups) - 1)
    apart = set(groups[:count])
    rows = range(len(table.entries))
    return Parts(
        table,
        labels(
            table.agreement,
            table.loss,
            table.full_loss[:, None],
            least_agreement=least_agreement,
            loss_ratio=loss_ratio,
        ),
        [row for row in rows if table.entries[row].images not in apart],
        [row for row in rows if table.entries[row].images in apart],
    )
