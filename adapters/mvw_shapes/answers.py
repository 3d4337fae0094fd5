"""The true answer to a question about a scene, and the four stages that lead to it.

SUMMARY says what will be done and needs no look at the picture. CAPTION lists every shape in
reading order. REASONING and CONCLUSION follow from the question and the caption alone, which is
what makes withdrawal after the caption free. The stage tags are those of LLaVA-CoT
(https://arxiv.org/abs/2411.10440, section 3.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mvw_shapes.scenes import COLOURS, COLUMNS, KINDS, PLACES, ROWS

if TYPE_CHECKING:
    from mvw_shapes.questions import Question
    from mvw_shapes.scenes import Scene
    from mvw_shapes.wordings import Selection

STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
TAGS = tuple(tag for stage in STAGES for tag in (f"<{stage}>", f"</{stage}>"))

_VERDICTS = {1: "more than", 0: "equal to", -1: "less than"}


def _article(noun: str) -> str:
    return ("An " if noun[0] in "aeiou" else "A ") + noun


def places_of(scene: Scene, selection: Selection) -> list[int]:
    """List the places of the shapes that a selection picks, in reading order."""
    return [place for place, shape in enumerate(scene.cells) if selection.matches(shape)]


def true_answer(scene: Scene, question: Question) -> str:
    """Answer a question from the scene itself."""
    first = places_of(scene, question.first)
    if question.kind == "count":
        return str(len(first))
    if question.kind == "place":
        return _at_place(scene, question)
    if question.kind == "existence":
        return _yes(bool(first) if question.place is None else question.place in first)
    assert question.second is not None
    second = places_of(scene, question.second)
    if question.kind == "comparison":
        sign = _sign(len(first) - len(second))
        return _yes(sign == {"more": 1, "fewer": -1, "equal": 0}[question.asks])
    for selection, places in ((question.first, first), (question.second, second)):
        if not places:
            return f"There is no {selection.singular}"
        if len(places) > 1:
            return f"There are {len(places)} {selection.plural}"
    (row_a, column_a), (row_b, column_b) = divmod(first[0], 3), divmod(second[0], 3)
    return _yes(
        {
            "left": column_a < column_b,
            "right": column_a > column_b,
            "above": row_a < row_b,
            "below": row_a > row_b,
        }[question.asks]
    )


def _at_place(scene: Scene, question: Question) -> str:
    assert question.place is not None
    shape = scene.cells[question.place]
    if shape is None:
        return "Nothing"
    if question.asks == "object":
        return _article(f"{shape.colour} {shape.kind}")
    return (shape.colour if question.asks == "colour" else shape.kind).capitalize()


def _yes(holds: bool) -> str:
    return "Yes" if holds else "No"


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def write(scene: Scene, question: Question) -> str:
    """Write the four stages that answer a question about a scene."""
    texts = (
        _summary(question),
        caption(scene),
        _reasoning(scene, question),
        true_answer(scene, question),
    )
    return " ".join(
        f"<{stage}> {text} </{stage}>" for stage, text in zip(STAGES, texts, strict=True)
    )


def caption(scene: Scene) -> str:
    """List every shape of a scene with its place, in reading order."""
    named = (
        f"{PLACES[place]} {shape.colour} {shape.kind}"
        for place, shape in enumerate(scene.cells)
        if shape is not None
    )
    return ", ".join(named) + "."


def _summary(question: Question) -> str:
    first, second = question.first, question.second
    if question.kind == "count":
        plan = f"count the {first.plural}"
    elif question.kind == "place":
        assert question.place is not None
        what = "shape and colour" if question.asks == "object" else question.asks
        plan = f"name the {what} at the {PLACES[question.place]}"
    elif question.kind == "existence":
        plan = f"look for {first.plural}"
        if question.place is not None:
            plan += f" at the {PLACES[question.place]}"
    else:
        assert second is not None
        if question.kind == "comparison":
            plan = f"compare the numbers of {first.plural} and {second.plural}"
        else:
            plan = f"compare the places of the {first.singular} and the {second.singular}"
    return f"I list every shape, then {plan}."


def _reasoning(scene: Scene, question: Question) -> str:
    first, second = question.first, question.second
    if question.place is not None:
        return _visit(scene, question)
    told = [_tally(scene, (first, second) if second else (first,))]
    if second is not None:
        mine, others = places_of(scene, first), places_of(scene, second)
        # What was asked is said again right before the answer, which then needs nothing far back.
        if question.kind == "comparison":
            verdict = _VERDICTS[_sign(len(mine) - len(others))]
            told.append(f"{question.asks}? {len(mine)} is {verdict} {len(others)}.")
        elif len(mine) == len(others) == 1:
            told.append(f"At the {PLACES[mine[0]]} and the {PLACES[others[0]]}.")
            told.append(f"{question.asks}? {_lines_of(question.asks, mine[0], others[0])}")
    return " ".join(told)


def _visit(scene: Scene, question: Question) -> str:
    """Go through the caption up to the place that is asked about."""
    assert question.place is not None
    wanted = PLACES[question.place]
    told = []
    for place, shape in enumerate(scene.cells):
        if shape is None:
            continue
        named = f"{shape.colour} {shape.kind}"
        told.append(f"{PLACES[place]} {named}: {wanted} {_yes(place == question.place)}.")
        if place == question.place:
            told.append(f"At the {wanted}: {named}.")
            if question.kind == "existence":
                hit = _yes(question.first.matches(shape))
                told.append(f"{named}: {question.first.plural} {hit}.")
            break
    else:
        told.append(f"At the {wanted}: nothing.")
    return " ".join(told)


def _tally(scene: Scene, selections: tuple[Selection, ...]) -> str:
    """Go through the caption again and count aloud; every step needs only the one before it.

    What is counted is named at every shape, and Yes or No comes before the number: a network this
    small takes one step at a time.
    """
    counts = [0] * len(selections)
    steps = []
    for place, shape in enumerate(scene.cells):
        if shape is None:
            continue
        told = []
        for number, selection in enumerate(selections):
            hit = selection.matches(shape)
            counts[number] += hit
            told.append(f"{selection.plural} {_yes(hit)} {counts[number]}")
        steps.append(f"{PLACES[place]} {shape.colour} {shape.kind}: {', '.join(told)}.")
    return f"{' '.join(steps)} That makes {' and '.join(map(str, counts))}."


def _lines_of(direction: str, first: int, second: int) -> str:
    if direction in ("left", "right"):
        return f"The columns are {COLUMNS[first % 3]} and {COLUMNS[second % 3]}."
    return f"The rows are {ROWS[first // 3]} and {ROWS[second // 3]}."


def vocabulary_text() -> str:
    """Return a text that contains every word that `write` can produce."""
    fixed = (
        "I list every shape, then count the name the shape and colour at the At the : look for "
        "compare the numbers of and compare the places of nothing none That makes The is "
        "The columns are The rows are Yes No Nothing There is no There are A An ."
    )
    names = [*COLOURS, *KINDS, "shape", *(f"{kind}s" for kind in (*KINDS, "shape"))]
    capitals = [name.capitalize() for name in (*COLOURS, *KINDS)]
    return " ".join(
        [fixed, *names, *capitals, *PLACES, *ROWS, *COLUMNS, *_VERDICTS.values(), *"0123456789"]
    )
