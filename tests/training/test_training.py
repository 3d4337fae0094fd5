"""The trainer goes on after a kill as if nothing had been, on data that a seed fixes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import fast_attention
import pytest
import torch
from batches import IGNORED, make_batch
from mvw_shapes.scenes import Scene, Shape
from network import VISION_TOKENS, build_model, build_processor
from reasoning import PLACES
from train_shapes import Settings, backward, export, train
from transformers import AutoProcessor, LlavaForConditionalGeneration
from vision_phase import make_sights

TINY = Settings(
    see_steps=2,
    language_steps=2,
    whole_steps=2,
    sights=2,
    pictures=2,
    questions=2,
    rows=3,
    warm_up=1,
    checkpoint_every=2,
    vision_layers=1,
    vision_width=32,
    text_layers=1,
    text_width=40,
)


def test_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    whole = train(TINY, tmp_path / "whole").state_dict()
    train(TINY, tmp_path / "cut", stop_after=3)  # one step past the last saved state
    resumed = train(TINY, tmp_path / "cut").state_dict()
    untrained = train(TINY, tmp_path / "none", stop_after=0).state_dict()
    assert all(whole[name].equal(resumed[name]) for name in whole)
    assert not all(whole[name].equal(untrained[name]) for name in whole)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train(TINY, tmp_path, stop_after=2)
    with pytest.raises(ValueError, match="other settings"):
        train(replace(TINY, seed=1), tmp_path)


def test_an_export_is_a_plain_checkpoint(tmp_path: Path) -> None:
    model = train(TINY, tmp_path / "run", stop_after=0)
    export(model, tmp_path / "weights")
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path / "weights")
    assert loaded.config._attn_implementation == "sdpa"
    assert loaded.generation_config.eos_token_id == loaded.config.text_config.eos_token_id
    state = loaded.state_dict()
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert AutoProcessor.from_pretrained(tmp_path / "weights").chat_template


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    processor = build_processor()

    def ids(seed: int, step: int) -> torch.Tensor:
        return make_batch(processor, seed, step, phase="whole", pictures=2, questions=2).input_ids

    one, again = (
        make_batch(processor, 1, 7, phase="whole", pictures=2, questions=2) for _ in range(2)
    )
    assert one.input_ids.equal(again.input_ids)
    assert one.pixel_values.equal(again.pixel_values)
    assert not (ids(1, 7).shape == ids(1, 8).shape and ids(1, 7).equal(ids(1, 8)))
    assert not (ids(1, 7).shape == ids(2, 7).shape and ids(1, 7).equal(ids(2, 7)))


def test_no_held_out_layout_is_ever_trained_on() -> None:
    processor = build_processor()
    named = re.compile(rf"({'|'.join(PLACES)}) (\w+) (\w+)")
    layouts = set()
    for step in range(8):
        batch = make_batch(processor, 1, step, phase="language", pictures=16, questions=2)
        for text in processor.tokenizer.batch_decode(batch.input_ids):
            caption = text.split("<CAPTION>")[1].split("</CAPTION>")[0]
            cells: list[Shape | None] = [None] * 9
            for place, colour, kind in named.findall(caption):
                cells[PLACES.index(place)] = Shape(colour, kind)
            scene = Scene(tuple(cells))
            assert not scene.held_out
            layouts.add(scene.layout)
    assert len(layouts) > 100


def test_the_loss_is_on_the_answer_only() -> None:
    processor = build_processor()
    batch = make_batch(processor, 1, 0, phase="whole", pictures=3, questions=2)
    for ids, labels, length in zip(batch.input_ids, batch.labels, batch.lengths, strict=True):
        assert int((ids == processor.image_token_id).sum()) == VISION_TOKENS  # none is taken away
        told = processor.tokenizer.decode(ids[labels != IGNORED])
        assert told.startswith("<SUMMARY>") and told.endswith("</CONCLUSION> </s>")
        assert (labels[labels != IGNORED] == ids[labels != IGNORED]).all()
        assert processor.tokenizer.decode(ids[: int(length)]).endswith(told)


def test_language_comes_without_pictures_and_its_caption_is_given() -> None:
    processor = build_processor()
    image, start, end = processor.tokenizer.convert_tokens_to_ids(
        ["<image>", "<CAPTION>", "</CAPTION>"]
    )
    batch = make_batch(processor, 1, 0, phase="language", pictures=3, questions=2)
    assert batch.pixel_values is None
    for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        assert image not in ids
        first, last = ids.index(start), ids.index(end)
        assert set(labels[first + 1 : last + 1]) == {IGNORED}
        assert labels[last + 1 : last + 9] == ids[last + 1 : last + 9]
        assert labels[first] == start


def test_sights_name_what_was_drawn() -> None:
    processor = build_processor()
    sights = make_sights(processor, 1, 0, pictures=6)
    again = make_sights(processor, 1, 0, pictures=6)
    assert sights.pixel_values.equal(again.pixel_values)
    assert sights.cells.equal(again.cells)
    assert sights.cells.shape == (6, 9)
    # An empty cell is all background: light, and of one tone. A full one holds something darker.
    third = sights.pixel_values.shape[-1] // 3
    for picture, cells in zip(sights.pixel_values, sights.cells.tolist(), strict=True):
        for place, number in enumerate(cells):
            rows = slice(place // 3 * third, (place // 3 + 1) * third)
            columns = slice(place % 3 * third, (place % 3 + 1) * third)
            darkest = picture[:, rows, columns].amin(0).min()
            assert (darkest > 0.5) == (number == 0)


def test_split_gradients_equal_those_of_the_whole_batch() -> None:
    processor = build_processor()
    batch = make_batch(processor, 1, 0, phase="whole", pictures=3, questions=2)
    torch.manual_seed(0)
    model = build_model(vision_layers=1, vision_width=32, text_layers=2, text_width=40).train()
    whole = model(
        input_ids=batch.input_ids,
        attention_mask=(batch.input_ids != 0).long(),
        pixel_values=batch.pixel_values.repeat_interleave(2, 0),
        labels=batch.labels,
    ).loss
    whole.backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    fast_attention.use(model)
    loss = backward(model, batch, rows=4, bfloat16=False)
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert loss == pytest.approx(whole.item(), abs=1e-5)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
