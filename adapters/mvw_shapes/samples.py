"""What the embedded model has never seen, with questions about it and true answers."""

from __future__ import annotations

import json
import os
import random
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mvw_cli import MvwError, UsageProblem
from mvw_shapes.easy_vqa import load_questions, recognise
from mvw_shapes.questions import QUESTION_KINDS, Question, Selection, phrase, with_article
from mvw_shapes.scenes import COLOURS, KINDS, Scene, Shape, draw, sample_scene

QUESTIONS = "questions.jsonl"
_TRIES = 24  # draws of a question that gives the wanted answer before the scene is changed


def write_samples(directory: Path, count: int, seed: int, *, overwrite: bool = False) -> Path:
    """Write `count` held-out scenes as PNG and their questions as JSON lines; return the latter.

    The same count and seed write the same files. Each line has `id`, `image` (relative to the
    directory), `question`, `answer` and `kind`.

    Raises:
        UsageProblem: a file of one of these names is there already, and `overwrite` is off.
        MvwError: the directory cannot be made or written.
    """
    rng = random.Random(f"samples/{seed}")
    names = [f"scene-{number:04d}.png" for number in range(1, count + 1)]

    def records() -> Iterator[Record]:
        for name in names:
            example = sample_example(rng, held_out=True)
            draw(example.scene, rng).save(directory / name)
            told = example.text, example.answer, example.question.kind
            yield Record(name.removesuffix(".png"), name, *told)

    return _write(directory, names, records(), overwrite=overwrite)


def write_easy_vqa(directory: Path, count: int, seed: int, *, overwrite: bool = False) -> Path:
    """Write `count` questions of easy-VQA's test split, drawn by `seed`, as `write_samples` does.

    Of all of them, or more than there are, all are written, in the order of the split.

    Raises:
        UsageProblem: as `write_samples`, or the package is not installed.
        MvwError: the directory cannot be made or written.
    """
    asked = load_questions("test")
    chosen = sorted(
        random.Random(f"samples/{seed}").sample(range(len(asked)), min(count, len(asked)))
    )
    files = {asked[index][2].name: asked[index][2] for index in chosen}

    def records() -> Iterator[Record]:
        for name, file in files.items():
            (directory / name).write_bytes(file.read_bytes())
        for index in chosen:
            text, answer, file = asked[index]
            question = recognise(text)
            kind = question.asks if question else ""
            yield Record(f"easy-{index:05d}", file.name, text, answer, kind)

    return _write(directory, files, records(), overwrite=overwrite)


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the list; the image's path is relative to the list."""

    id: str
    image: str
    question: str
    answer: str
    kind: str


def _write(
    directory: Path, names: Iterable[str], records: Iterator[Record], *, overwrite: bool
) -> Path:
    """Write the list of the records, which write their pictures as they are taken."""
    for name in () if overwrite else (QUESTIONS, *names):
        if os.path.lexists(directory / name):
            raise UsageProblem(
                f"{directory / name} exists already",
                cause="samples would replace it",
                hint=f"mvw samples {shlex.quote(str(directory / 'new'))}",
            )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(asdict(record)) + "\n" for record in records]
        # Written last and at once: a list that is there is complete.
        part = directory / (QUESTIONS + ".part")
        part.write_text("".join(lines), encoding="utf-8")
        os.replace(part, directory / QUESTIONS)
    except OSError as error:
        raise MvwError(
            f"Cannot write samples to {directory}",
            cause=error.strerror or str(error),
            hint="mvw samples samples",
        ) from None
    return directory / QUESTIONS


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


def _spot(scene: Scene, rng: random.Random) -> int:
    """Choose a place, more often one that is taken."""
    taken = places_of(scene, Selection())
    return rng.choice(taken) if rng.random() < 0.75 else rng.randrange(9)


def _place(scene: Scene, rng: random.Random) -> Question:
    place = _spot(scene, rng)
    return Question("place", rng.choice(("object", "colour", "shape")), place=place)


def _existence(scene: Scene, rng: random.Random) -> Question:
    if rng.random() < 0.7:
        if rng.random() < 0.5:
            first = Selection(rng.choice(list(COLOURS)), rng.choice(KINDS))
        else:
            first = _selection(scene, rng, everything=False)
        return Question("existence", "any", first)
    place = _spot(scene, rng)
    shape = scene.cells[place]
    if shape is None or rng.random() < 0.5:
        first = _selection(scene, rng, everything=True)
    else:
        colour, kind = shape.colour, shape.kind
        first = rng.choice((Selection(colour), Selection(None, kind), Selection(colour, kind)))
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


def places_of(scene: Scene, selection: Selection) -> list[int]:
    """List the places of the shapes that a selection picks, in reading order."""
    return [place for place, shape in enumerate(scene.cells) if selection.matches(shape)]


def true_answer(scene: Scene, question: Question) -> str:
    """Answer a question from the scene itself."""
    first, asks = places_of(scene, question.first), question.asks
    if question.kind == "count":
        return str(len(first))
    if question.kind == "place":
        assert question.place is not None
        shape = scene.cells[question.place]
        if shape is None:
            return "Nothing"
        whole = with_article(f"{shape.colour} {shape.kind}")
        parts = {"object": whole, "colour": shape.colour, "shape": shape.kind}
        return parts[asks].capitalize()
    if question.kind == "existence":
        return _yes(bool(first) if question.place is None else question.place in first)
    assert question.second is not None
    second = places_of(scene, question.second)
    if question.kind == "comparison":
        one, other = len(first), len(second)
        return _yes({"more": one > other, "fewer": one < other, "equal": one == other}[asks])
    for selection, places in ((question.first, first), (question.second, second)):
        if not places:
            return f"There is no {selection.singular}"
        if len(places) > 1:
            return f"There are {len(places)} {selection.plural}"
    (row_a, column_a), (row_b, column_b) = divmod(first[0], 3), divmod(second[0], 3)
    holds = {
        "left": column_a < column_b,
        "right": column_a > column_b,
        "above": row_a < row_b,
        "below": row_a > row_b,
    }
    return _yes(holds[asks])


def _yes(holds: bool) -> str:
    return "Yes" if holds else "No"
