"""Text survives the tokenizer, also token by token, and the processor is a plain one."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from batches import prompt
from mvw_shapes.model import WEIGHTS
from mvw_shapes.samples import sample_example
from mvw_shapes.scenes import draw
from network import VISION_TOKENS, build_processor, build_tokenizer
from reasoning import TAGS, write
from transformers import AutoProcessor


def _answers(count: int = 200) -> list[str]:
    rng = random.Random(9)
    examples = [sample_example(rng) for _ in range(count)]
    return [write(example.scene, example.question) for example in examples]


def test_the_packaged_tokenizer_is_the_one_that_is_built() -> None:
    packaged = AutoProcessor.from_pretrained(WEIGHTS).tokenizer
    built = build_tokenizer()
    assert json.loads(packaged.backend_tokenizer.to_str()) == json.loads(
        built.backend_tokenizer.to_str()
    )
    assert packaged.chat_template == built.chat_template


def test_streaming_never_changes_what_was_shown() -> None:
    tokenizer = build_tokenizer()
    for number, text in enumerate(_answers()):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert " ." not in text and " ," not in text and " :" not in text
        shown = ""
        for end in range(1, len(ids) + 1) if number < 40 else ():
            now = tokenizer.decode(ids[:end], skip_special_tokens=True)
            assert now.startswith(shown)
            shown = now


def test_stage_tags_are_single_tokens_that_stay_in_the_text() -> None:
    tokenizer = build_tokenizer()
    for tag in TAGS:
        (number,) = tokenizer(tag).input_ids
        assert tokenizer.decode([number], skip_special_tokens=True) == tag
        assert number not in tokenizer.all_special_ids


def test_the_chat_template_is_the_prompt_of_the_training() -> None:
    processor = build_processor()
    text = {"type": "text", "text": "  How many RED circles are there? "}
    image = {"type": "image"}

    def render(content: list[dict[str, str]]) -> str:
        message = [{"role": "user", "content": content}]
        return processor.apply_chat_template(message, add_generation_prompt=True)

    assert render([image, text]) == (
        "<s><user> <image> how many red circles are there? <assistant>"
    )
    assert render([text, image]) == render([image, text])
    asked = render([image, text]).replace("<image>", "<image>" * VISION_TOKENS)
    assert prompt(processor, text["text"]) == asked


def test_a_saved_processor_loads_without_torchvision(tmp_path: Path) -> None:
    built = build_processor()
    built.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    rng = random.Random(10)
    image = draw(sample_example(rng).scene, rng)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Why?"}]
    message = [{"role": "user", "content": content}]
    inputs = loaded.apply_chat_template(
        message, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert int((inputs["input_ids"] == loaded.image_token_id).sum()) == VISION_TOKENS >= 100
    assert inputs["pixel_values"].shape == (1, 3, 84, 84)
    expected = built.image_processor([image], return_tensors="pt")["pixel_values"]
    assert inputs["pixel_values"].equal(expected)


@pytest.mark.parametrize("word", ["cats", "zebra", "\u00fcber"])
def test_an_unknown_word_is_one_unknown_token(word: str) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer(f"how many {word}").input_ids[2:] == [tokenizer.unk_token_id]
