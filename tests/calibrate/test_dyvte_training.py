"""Training of DyVTE's gates: it learns what can be learnt, from images that it is not judged by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hints import parse_hint
from torch import Tensor

from mvw_cli.calibrate.dyvte.gates import HIDDEN, Gate
from mvw_cli.calibrate.dyvte.report import decisions
from mvw_cli.calibrate.dyvte.training import Dataset, split, train
from mvw_cli.errors import UsageProblem

WIDTH = 12


def planted(questions: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of two gates whose labels are the side of a plane that each is on."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(questions, 2, WIDTH, generator=random)
    planes = torch.tensor([[1.0] * 3 + [0.0] * 9, [0.0] * 8 + [1.0, -1.0, 1.0, -1.0]])
    return features, ((features * planes).sum(-1) > 0).long()


def quickly_trained(**options: Any) -> list[Gate]:
    return train(*planted(48), lr=1e-3, epochs=1, batch=8, **options)


def test_planted_labels_are_learnt_at_the_published_rate() -> None:
    gates = train(*planted(300), epochs=20)
    features, labels = planted(200, seed=1)
    right = (decisions(gates, features) == labels.bool()).float().mean(0)
    assert right.min() > 0.9
    # What one gate has learnt is of no use to the other.
    crossed = decisions(gates[::-1], features) == labels.bool()
    assert crossed.float().mean() < 0.75


def test_a_seed_gives_the_same_gates_of_the_published_shape() -> None:
    first, again, other = (quickly_trained(seed=seed) for seed in (0, 0, 1))
    for gate, same, differs in zip(first, again, other, strict=True):
        assert [tuple(one.shape) for one in gate] == [(HIDDEN, WIDTH), (2, HIDDEN), (2,)]
        assert all(torch.equal(a, b) for a, b in zip(gate, same, strict=True))
        assert not torch.equal(gate[0], differs[0])


def test_each_gate_sees_each_question_as_often_as_there_are_epochs() -> None:
    ticks: list[tuple[int, int]] = []
    train(
        *planted(33), epochs=3, batch=16, tick=lambda done, total, loss: ticks.append((done, total))
    )
    total = 3 * 2 * 3  # epochs, gates, and batches of 33 questions
    assert ticks == [(done, total) for done in range(1, total + 1)]


def dataset(images: Sequence[str]) -> Dataset:
    """Questions about some images, one each."""
    questions = tuple({"key": str(row), "sha256": [one]} for row, one in enumerate(images))
    nothing = torch.zeros(len(images), 3)
    return Dataset(questions, torch.zeros(len(images), 3, 8), nothing, nothing, nothing[:, 0])


def test_no_image_is_in_both_parts() -> None:
    questions = dataset([f"image {number // 2}" for number in range(40)])
    training, held_out = split(questions, 0.25, 0)
    held = {questions.images(row) for row in held_out}
    seen = {questions.images(row) for row in training}
    assert (len(held), len(seen), len(held_out)) == (5, 15, 10)
    assert not held & seen
    assert split(questions, 0.25, 0)[1] == held_out
    assert split(questions, 0.25, 1)[1] != held_out
    assert len(split(questions, 0.999, 0)[0]) == 2


def test_one_image_cant_be_parted() -> None:
    with pytest.raises(UsageProblem, match="one image") as caught:
        split(dataset(["the same", "the same"]), 0.2, 0)
    assert caught.value.hint is not None
    parse_hint(caught.value.hint)
