"""The true answers, held against a second reading of the scene that shares no code with them."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from mvw_shapes.questions import QUESTION_KINDS, Question, Selection
from mvw_shapes.samples import Example, sample_example, true_answer
from mvw_shapes.scenes import Scene, Shape
from network import build_tokenizer
from reasoning import STAGES, write

CAPTION = re.compile(
    r"(top left|top middle|top right|middle left|centre|middle right|bottom left|bottom middle"
    r"|bottom right) (\w+) (\w+)"
)
ROWS = {"top": 0, "middle": 1, "centre": 1, "bottom": 2}
COLUMNS = {"left": 0, "middle": 1, "centre": 1, "right": 2}


def _examples(kind: str, count: int = 400) -> list[Example]:
    rng = random.Random(f"answers/{kind}")
    return [sample_example(rng, kind=kind) for _ in range(count)]


def _stages(text: str) -> dict[str, str]:
    return {stage: text.split(f"<{stage}> ")[1].split(f" </{stage}>")[0] for stage in STAGES}


def _answer_from_caption(caption: str, question: Question) -> str:
    """Answer from the words of the caption alone: it has to be enough once vision is gone."""
    seen = []
    for place, colour, kind in CAPTION.findall(caption):
        words = place.split()
        seen.append((ROWS[words[0]], COLUMNS[words[-1]], colour, kind))

    def pick(selection: Selection) -> list[tuple[int, int, str, str]]:
        return [
            thing
            for thing in seen
            if (not selection.colour or thing[2] == selection.colour)
            and (not selection.kind or thing[3] == selection.kind)
        ]

    first = pick(question.first)
    if question.kind == "count":
        return f"{len(first)}"
    if question.kind == "existence":
        spot = None if question.place is None else (question.place // 3, question.place % 3)
        return "Yes" if any(spot in (None, thing[:2]) for thing in first) else "No"
    if question.kind == "place":
        assert question.place is not None
        there = [thing for thing in seen if thing[0] * 3 + thing[1] == question.place]
        if not there:
            return "Nothing"
        _, _, colour, kind = there[0]
        whole = f"{'An' if colour == 'orange' else 'A'} {colour} {kind}"
        return {"colour": colour.title(), "shape": kind.title(), "object": whole}[question.asks]
    assert question.second is not None
    second = pick(question.second)
    if question.kind == "comparison":
        a, b = len(first), len(second)
        return "Yes" if {"more": a > b, "fewer": a < b, "equal": a == b}[question.asks] else "No"
    for found, selection in ((first, question.first), (second, question.second)):
        name = f"{selection.colour or ''} {selection.kind or 'shape'}".strip()
        if len(found) == 0:
            return f"There is no {name}"
        if len(found) >= 2:
            return f"There are {len(found)} {name}s"
    (row_a, column_a, *_), (row_b, column_b, *_) = first[0], second[0]
    holds = {
        "left": column_b > column_a,
        "right": column_b < column_a,
        "above": row_b > row_a,
        "below": row_b < row_a,
    }
    return "Yes" if holds[question.asks] else "No"


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_answers_are_true_and_follow_from_the_caption(kind: str) -> None:
    for example in _examples(kind):
        stages = _stages(write(example.scene, example.question))
        assert stages["CONCLUSION"] == example.answer
        assert _answer_from_caption(stages["CAPTION"], example.question) == example.answer
        layout = "|".join(f"{shape.colour} {shape.kind}" for shape in example.scene.cells if shape)
        assert "|".join(" ".join(f[1:]) for f in CAPTION.findall(stages["CAPTION"])) == layout


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_the_summary_tells_nothing_of_the_scene(kind: str) -> None:
    rng = random.Random(8)
    for example in _examples(kind, 50):
        other = sample_example(rng).scene
        assert (
            _stages(write(example.scene, example.question))["SUMMARY"]
            == _stages(write(other, example.question))["SUMMARY"]
        )


def test_every_word_of_an_answer_is_in_the_vocabulary() -> None:
    tokenizer = build_tokenizer()
    for kind in QUESTION_KINDS:
        for example in _examples(kind):
            text = write(example.scene, example.question)
            assert tokenizer.unk_token_id not in tokenizer(text).input_ids, text


def test_answers_are_balanced() -> None:
    for kind in ("existence", "comparison", "relation"):
        told = Counter(example.answer.split()[0] for example in _examples(kind))
        assert 0.8 < told["Yes"] / told["No"] < 1.25, kind
    counts = Counter(example.answer for example in _examples("count", 1500))
    assert set(counts) == set("0123456789")
    assert counts["0"] > 60
    assert sum(counts[number] for number in "23456789") > 500


def test_a_missing_or_repeated_shape_is_said_so() -> None:
    red, blue = Shape("red", "circle"), Shape("blue", "star")
    scene = Scene((red, red, blue, *[None] * 6))

    def ask(first: Selection, second: Selection) -> str:
        return true_answer(scene, Question("relation", "left", first, second))

    assert ask(Selection("green", "star"), Selection("blue")) == "There is no green star"
    assert ask(Selection("red"), Selection("blue")) == "There are 2 red shapes"
    assert ask(Selection("blue"), Selection(None, "circle")) == "There are 2 circles"
