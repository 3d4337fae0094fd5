"""Text survives the tokenizer, also token by token, and the processor is a plain one."""

from __future__ import annotations

import json
import random

import pytest
from batches import prompt
from mvw_shapes.model import WEIGHTS
from mvw_shapes.samples import sample_example
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


@pytest.mark.parametrize("word", ["cats", "zebra", "\u00fcber"])
def test_an_unknown_word_is_one_unknown_token(word: str) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer(f"how many {word}").input_ids[2:] == [tokenizer.unk_token_id]
