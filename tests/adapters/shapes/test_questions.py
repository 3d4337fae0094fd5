"""Every template is written, recognised and known to the tokenizer; the rest is refused."""

from __future__ import annotations

import random

import pytest
from mvw_shapes.model import Shapes
from mvw_shapes.questions import (
    QUESTION_KINDS,
    TEMPLATES,
    Question,
    Selection,
    normalise,
    pattern,
    recognise,
)
from mvw_shapes.samples import sample_example

TOKENIZER = Shapes().tiny().processor.tokenizer
RED_CIRCLE = Selection("red", "circle")


def _examples() -> list[tuple[str, Question]]:
    rng = random.Random(5)
    drawn = [sample_example(rng, kind=kind) for kind in QUESTION_KINDS for _ in range(800)]
    return [(example.text, example.question) for example in drawn]


def test_what_is_written_is_recognised_with_the_same_meaning() -> None:
    for text, question in _examples():
        assert recognise(text) == question, text
        assert recognise(text.upper()) == question
        assert recognise(f"  {text.rstrip('?.')} ? ") == question
        assert TOKENIZER.unk_token_id not in TOKENIZER(text.lower()).input_ids, text


def test_every_template_is_used() -> None:
    texts = [normalise(text) for text, _ in _examples()]
    for template in TEMPLATES:
        assert any(pattern(template).fullmatch(text) for text in texts), template


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("How many red circles are there?", Question("count", "number", RED_CIRCLE)),
        ("HOW MANY RED CIRCLES ARE THERE", Question("count", "number", RED_CIRCLE)),
        ("How many red circles?", Question("count", "number", RED_CIRCLE)),
        ("how many shapes do you see in the picture?", Question("count", "number")),
        ("Count the stars.", Question("count", "number", Selection(None, "star"))),
        ("What is at the top left?", Question("place", "object", place=0)),
        ("What\u2019s in the middle?", Question("place", "object", place=4)),
        ("What color is the shape in the center?", Question("place", "colour", place=4)),
        ("What colour is the top-left shape?", Question("place", "colour", place=0)),
        ("What shape is in the bottom right corner?", Question("place", "shape", place=8)),
        ("Is there a red circle?", Question("existence", "any", RED_CIRCLE)),
        ("Do you see any red circles?", Question("existence", "any", RED_CIRCLE)),
        (
            "Are there more red shapes than blue shapes?",
            Question("comparison", "more", Selection("red"), Selection("blue")),
        ),
        (
            "Is the red circle to the left of the blue square?",
            Question("relation", "left", RED_CIRCLE, Selection("blue", "square")),
        ),
    ],
)
def test_plain_english(text: str, question: Question) -> None:
    assert recognise(text) == question


@pytest.mark.parametrize(
    "text",
    [
        "How many cats are there?",
        "Describe this image in great detail.",
        "",
        "red",
        "How many red are circles there?",
        "How many red circles are there? And blue ones?",
    ],
)
def test_what_no_template_says_is_refused(text: str) -> None:
    assert recognise(text) is None
