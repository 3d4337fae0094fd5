"""easy-VQA as it lies in its package: every question is read, and a kill loses nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from accuracy import stage
from batches import IGNORED
from mvw_shapes.easy_vqa import load_questions, recognise, true_answer
from network import build_model, build_processor
from reasoning import STAGES
from train_easy_vqa import (
    Picture,
    Settings,
    load_pictures,
    make_batch,
    train,
    write_single,
)

TINY = Settings(steps=4, pictures=4, rows=3, warm_up=1, checkpoint_every=2)


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return load_pictures()


def test_every_question_of_both_splits_is_read() -> None:
    asked = [text for split in ("train", "test") for text, _, _ in load_questions(split)]
    assert len(asked) == 48_248
    assert all(recognise(text) for text in asked)


def test_what_a_picture_shows_answers_its_questions(pictures: list[Picture]) -> None:
    told = {(file, text): answer for text, answer, file in load_questions("train")}
    assert len(pictures) == 3578  # of 4,000: the others' questions leave it open
    for picture in pictures:
        for text in picture.questions:
            question = recognise(text)
            assert question is not None
            assert true_answer(picture.shape, question) == told[picture.file, text]


def test_answers_have_their_stages_and_no_unknown_word(pictures: list[Picture]) -> None:
    tokenizer = build_processor().tokenizer
    for picture in pictures[::40]:
        for text in picture.questions:
            question = recognise(text)
            assert question is not None
            told = write_single(picture.shape, question)
            assert all(stage(told, name) for name in STAGES)
            assert stage(told, "CONCLUSION").lower() == true_answer(picture.shape, question)
            ids = tokenizer(told).input_ids
            assert tokenizer.unk_token_id not in [*ids, *tokenizer(text).input_ids]
            assert tokenizer.decode(ids) == told


def test_half_of_a_batch_is_easy_vqa(pictures: list[Picture]) -> None:
    processor = build_processor()
    batch = make_batch(processor, pictures, TINY, 0)
    told = [
        processor.tokenizer.decode(row[labels != IGNORED])
        for row, labels in zip(batch.input_ids, batch.labels, strict=True)
    ]
    assert ["I list" in text for text in told] == [True, False, True, False]
    again = make_batch(processor, pictures, TINY, 0)
    assert again.input_ids.equal(batch.input_ids)
    assert batch.pixel_values is not None and again.pixel_values is not None
    assert again.pixel_values.equal(batch.pixel_values)
    other = make_batch(processor, pictures, replace(TINY, seed=1), 0)
    assert not other.pixel_values.equal(batch.pixel_values)  # type: ignore[union-attr, arg-type]


def test_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    import torch

    def run(name: str, **options: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = build_model(vision_layers=1, vision_width=32, text_layers=1, text_width=40)
        train(TINY, tmp_path / name, model.train(), **options)
        return model.state_dict()

    whole = run("whole")
    run("cut", stop_after=3)  # one step past the last saved state
    resumed = run("cut")
    untrained = run("none", stop_after=0)
    assert all(whole[name].equal(resumed[name]) for name in whole)
    assert not all(whole[name].equal(untrained[name]) for name in whole)
