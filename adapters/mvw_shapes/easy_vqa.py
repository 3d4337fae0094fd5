"""The second world of the embedded model: easy-VQA, one coloured shape on a tinted ground.

A public data set that nobody here has drawn or worded: https://github.com/vzhou842/easy-VQA (MIT),
the package `easy-vqa`, with its own train and test split. Its templates and its palette are read
off its questions and pictures.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from mvw_cli import UsageProblem
from mvw_shapes.questions import Selection
from mvw_shapes.scenes import Shape

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "brown": (165, 42, 42),
    "teal": (0, 128, 128),
}
KINDS = ("circle", "rectangle", "triangle")

_SOUGHT = rf"a (?:(?P<colour>{'|'.join(COLOURS)}) shape|(?P<kind>{'|'.join(KINDS)}))"
_NO = _SOUGHT.replace("a ", "no ", 1)
_KIND = rf"(?:shape|(?P<kind>{'|'.join(KINDS)}))"
_FORMS = (
    ("colour", False, rf"what color is the {_KIND}"),
    ("colour", False, rf"what is the color of the {_KIND}"),
    ("shape", False, "what shape is in the image"),
    ("shape", False, "what shape does the image contain"),
    ("shape", False, "what shape is present"),
    ("shape", False, rf"what is the (?P<colour>{'|'.join(COLOURS)}) shape"),
    ("presence", False, f"is {_SOUGHT} present"),
    ("presence", False, f"is there {_SOUGHT}(?: in the image)?"),
    ("presence", False, f"does the image contain {_SOUGHT}"),
    ("presence", True, f"is {_NO} present"),
    ("presence", True, f"is there not {_SOUGHT}(?: in the image)?"),
    ("presence", True, f"does the image not contain {_SOUGHT}"),
)


@dataclass(frozen=True, slots=True)
class Question:
    """Hold what is asked: "colour", "shape" or "presence" (of a colour or a kind), or absence."""

    asks: str
    negated: bool
    named: Selection


@cache
def recognise(text: str) -> Question | None:
    """Read a question, or return None when easy-VQA does not ask so."""
    text = " ".join(text.lower().split()).rstrip(" ?.!")
    for asks, negated, form in _FORMS:
        if match := re.fullmatch(form, text):
            named = match.groupdict()
            return Question(asks, negated, Selection(named.get("colour"), named.get("kind")))
    return None


def load_questions(split: Literal["train", "test"]) -> list[tuple[str, str, Path]]:
    """Read a split of the installed package: questions, answers, files of pictures.

    Raises:
        UsageProblem: the package is not installed.
    """
    found = find_spec("easy_vqa")  # importing it is not needed
    if found is None or found.origin is None:
        raise UsageProblem(
            "easy-VQA is not installed",
            cause="its pictures and questions are in the package easy-vqa",
            hint="pip install easy-vqa",
        )
    folder = Path(found.origin).parent / "data" / split
    lines = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    return [(text, answer, folder / "images" / f"{number}.png") for text, answer, number in lines]


def true_answer(shape: Shape, question: Question) -> str:
    """Answer a question from the shape itself, in the data set's words."""
    if question.asks == "colour":
        return shape.colour
    if question.asks == "shape":
        return shape.kind
    found = question.named.matches(shape)
    return "yes" if found != question.negated else "no"


def words() -> set[str]:
    """List every word of the questions and of their answers."""
    names = {*COLOURS, *KINDS, *(f"{kind}s" for kind in KINDS)}
    forms = " ".join(re.sub(r"\(\?P<.*?\)", "", form) for _, _, form in _FORMS)
    fixed = set(re.findall(r"[a-z]+", forms))
    return names | fixed | {name.capitalize() for name in (*COLOURS, *KINDS)} | {"not", "no"}
