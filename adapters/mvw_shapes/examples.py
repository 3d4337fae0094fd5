"""Draw a scene together with a question about it, so that the answers come out balanced.

It decides what is asked how often and nothing else; wording, truth and pictures live elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvw_shapes.answers import places_of, true_answer
from mvw_shapes.questions import QUESTION_KINDS, Question, phrase
from mvw_shapes.scenes import COLOURS, KINDS, Scene, Shape, sample_scene
from mvw_shapes.wordings import Selection

if TYPE_CHECKING:
    import random

_TRIES = 24  # draws of a question that gives the wanted answer before the scene is changed


@dataclass(frozen=True, slots=True)
class Example:
    """Hold a scene, a question about it in words and in meaning, and its true answer."""

    scene: Scene
    question: Question
    text: str
    answer: str


def sample_example(
    rng: random.Random,
    *,
    held_out: bool = False,
    kind: str | None = None,
    scene: Scene | None = None,
) -> Example:
    """Draw a scene and a question of one kind, or of a random kind, about it.

    A scene that is handed in is kept; the wanted answer gives way if the scene does not allow it.
    """
    kind = kind or rng.choices(QUESTION_KINDS, weights=(28, 16, 16, 22, 18))[0]
    wanted = rng.choice(("Yes", "No"))
    if kind == "relation" and rng.random() < 0.12:
        wanted = "There"  # the shape is missing or not the only one, and the answer says so
    while True:
        chosen = scene or sample_scene(rng, held_out=held_out)
        for _ in range(_TRIES):
            question = _MAKERS[kind](chosen, rng)
            answer = true_answer(chosen, question)
            if kind in ("count", "place") or answer.split()[0] == wanted:
                break
        else:
            if scene is None:
                continue
        return Example(chosen, question, _punctuate(phrase(question, rng), rng), answer)


def _punctuate(text: str, rng: random.Random) -> str:
    mark = "." if text.startswith(("count", "tell")) else "?"
    text = text[0].upper() + text[1:]
    return text + mark if rng.random() < 0.75 else text


def _present(scene: Scene, rng: random.Random) -> Shape:
    return rng.choice([shape for shape in scene.cells if shape is not None])


def _pair(scene: Scene, rng: random.Random) -> Selection:
    """Take the colour and kind of one shape, or of two: near misses are the hard ones."""
    shape = _present(scene, rng)
    draw = rng.random()
    if draw < 0.7:
        return Selection(shape.colour, shape.kind)
    if draw < 0.85:
        return Selection(shape.colour, _present(scene, rng).kind)
    return Selection(rng.choice(list(COLOURS)), rng.choice(KINDS))


def _selection(scene: Scene, rng: random.Random, *, everything: bool) -> Selection:
    draw = rng.random()
    if everything and draw < 0.1:
        return Selection()
    absent = rng.random() < 0.15
    if draw < 0.33:
        return Selection(rng.choice(list(COLOURS)) if absent else _present(scene, rng).colour)
    if draw < 0.55:
        return Selection(None, rng.choice(KINDS) if absent else _present(scene, rng).kind)
    return _pair(scene, rng)


def _count(scene: Scene, rng: random.Random) -> Question:
    return Question("count", "number", _selection(scene, rng, everything=True))


def _place(scene: Scene, rng: random.Random) -> Question:
    taken = places_of(scene, Selection())
    place = rng.choice(taken) if rng.random() < 0.75 else rng.randrange(9)
    return Question("place", rng.choice(("object", "colour", "shape")), place=place)


def _existence(scene: Scene, rng: random.Random) -> Question:
    if rng.random() < 0.7:
        wide = rng.random() < 0.5
        first = (
            Selection(rng.choice(list(COLOURS)), rng.choice(KINDS))
            if wide
            else _selection(scene, rng, everything=False)
        )
        return Question("existence", "any", first)
    taken = places_of(scene, Selection())
    place = rng.choice(taken) if rng.random() < 0.75 else rng.randrange(9)
    shape = scene.cells[place]
    if shape is None or rng.random() < 0.5:
        return Question("existence", "any", _selection(scene, rng, everything=True), place=place)
    first = rng.choice(
        (Selection(shape.colour), Selection(None, shape.kind), Selection(shape.colour, shape.kind))
    )
    return Question("existence", "any", first, place=place)


def _comparison(scene: Scene, rng: random.Random) -> Question:
    first = second = Selection()
    while first == second or (first.colour is None) != (second.colour is None):
        first = _selection(scene, rng, everything=False)
        second = _selection(scene, rng, everything=False)
    return Question("comparison", rng.choice(("more", "fewer", "equal")), first, second)


def _relation(scene: Scene, rng: random.Random) -> Question:
    direction = rng.choice(("left", "right", "above", "below"))
    first = second = Selection()
    while first == second:
        first = _referent(scene, rng)
        second = _referent(scene, rng)
    return Question("relation", direction, first, second)


def _referent(scene: Scene, rng: random.Random) -> Selection:
    draw = rng.random()
    if draw < 0.7:
        shape = _present(scene, rng)
        return Selection(shape.colour, shape.kind) if draw < 0.62 else _pair(scene, rng)
    if draw < 0.85:
        return Selection(_present(scene, rng).colour)
    return Selection(None, _present(scene, rng).kind)


_MAKERS = {
    "count": _count,
    "place": _place,
    "existence": _existence,
    "comparison": _comparison,
    "relation": _relation,
}
