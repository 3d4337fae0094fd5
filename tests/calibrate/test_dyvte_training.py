"""Training of DyVTE's gates: it learns what can be learnt, and an interruption changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hints import parse_hint
from torch import Tensor

from mvw_cli.calibrate.dyvte.gates import HIDDEN, Gate
from mvw_cli.calibrate.dyvte.report import decisions
from mvw_cli.calibrate.dyvte.training import Dataset, Training, split, train
from mvw_cli.errors import UsageProblem

QUICK = Training(lr=1e-3, epochs=1, batch=8)
WIDTH = 12


def planted(questions: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of two gates whose labels are the side of a plane that each is on."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(questions, 2, WIDTH, generator=random)
    planes = torch.tensor([[1.0] * 3 + [0.0] * 9, [0.0] * 8 + [1.0, -1.0, 1.0, -1.0]])
    return features, ((features * planes).sum(-1) > 0).long()


def equal(one: Sequence[Gate], other: Sequence[Gate]) -> bool:
    return all(
        torch.equal(a, b)
        for gate, same in zip(one, other, strict=True)
        for a, b in zip(gate, same, strict=True)
    )


def trained(folder: Path, training: Training = QUICK, questions: int = 48) -> list[Gate]:
    gates = train(*planted(questions), training, folder / "training.safetensors")
    assert gates is not None
    return gates


def test_planted_labels_are_learnt_at_the_published_rate(tmp_path: Path) -> None:
    gates = trained(tmp_path, Training(epochs=20), questions=300)
    features, labels = planted(200, seed=1)
    right = (decisions(gates, features) == labels.bool()).float().mean(0)
    assert right.min() > 0.9
    # What one gate has learnt is of no use to the other.
    crossed = decisions(gates[::-1], features) == labels.bool()
    assert crossed.float().mean() < 0.75


def test_gates_have_the_published_shape(tmp_path: Path) -> None:
    for gate in trained(tmp_path):
        assert [tuple(one.shape) for one in gate] == [(HIDDEN, WIDTH), (2, HIDDEN), (2,)]


def test_a_seed_gives_the_same_gates_and_another_seed_others(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    first = trained(tmp_path / "one")
    assert equal(first, trained(tmp_path / "two"))
    assert not equal(first, trained(tmp_path / "three", replace(QUICK, seed=1)))


def test_an_interrupted_training_ends_with_the_same_gates(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = trained(tmp_path / "whole")
    calls = 0

    def enough() -> bool:
        nonlocal calls
        calls += 1
        return calls > 5

    checkpoint = tmp_path / "training.safetensors"
    assert train(*planted(48), QUICK, checkpoint, stopping=enough) is None
    assert calls == 6
    assert equal(trained(tmp_path), whole)


def test_a_training_that_dies_goes_on_from_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    long = replace(QUICK, epochs=5)
    whole = trained(tmp_path / "whole", long)
    monkeypatch.setattr("mvw_cli.calibrate.dyvte.training._PATIENCE", 0)

    def die(done: int, total: int, loss: float) -> None:
        raise KeyboardInterrupt

    checkpoint = tmp_path / "training.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(*planted(48), long, checkpoint, checkpoint_s=0, progress=die)
    went_on: list[int] = []
    gates = train(
        *planted(48), long, checkpoint, progress=lambda done, total, loss: went_on.append(done)
    )
    assert gates is not None and equal(gates, whole)
    assert went_on == [50]  # the checkpoint was of batch 49, of 60


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    first = trained(tmp_path)
    again = train(
        *planted(48), QUICK, tmp_path / "training.safetensors", progress=lambda *_: pytest.fail()
    )
    assert again is not None and equal(first, again)


@pytest.mark.parametrize("other", [replace(QUICK, lr=1e-2), replace(QUICK, seed=3)])
def test_a_checkpoint_of_another_training_is_left_alone(tmp_path: Path, other: Training) -> None:
    (tmp_path / "apart").mkdir()
    trained(tmp_path)
    assert equal(trained(tmp_path, other), trained(tmp_path / "apart", other))


def test_a_damaged_checkpoint_is_left_alone(tmp_path: Path) -> None:
    whole = trained(tmp_path)
    path = tmp_path / "training.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert equal(trained(tmp_path), whole)


def test_batches_are_counted_by_gate() -> None:
    assert Training(epochs=3, batch=16).batches(questions=33, gates=5) == 3 * 5 * 3


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
