"""The true answer to a question about a scene, and the four stages that lead to it.

SUMMARY says what will be done and needs no look at the picture. CAPTION lists every shape in
reading order. REASONING and CONCLUSION follow from the question and the caption alone, which is
what makes withdrawal after the caption free. The stage tags are those of LLaVA-CoT
(https://arxiv.org/abs/2411.10440, section 3.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mvw_shapes.scenes import COLOURS, COLUMNS, KINDS, PLACES, ROWS
from mvw_shapes.wordings import with_article

if TYPE_CHECKING:
    from mvw_shapes.questions import Question
    from mvw_shapes.scenes import Scene
    from mvw_shapes.wordings import Selection

STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
TAGS = tuple(tag for stage in STAGES for tag in (f"<{stage}>", f"</{stage}>"))

COMPARISONS = {1: "more", 0: "equal", -1: "fewer"}
DIRECTIONS = {"columns": ("left", "right"), "rows": ("above", "below")}
MARKS = ("first", "second")


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
        return _yes(COMPARISONS[_sign(len(first) - len(second))] == question.asks)
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
        return with_article(f"{shape.colour} {shape.kind}").capitalize()
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
    if second is None:
        return _tally(scene, (first,))
    told = _tally(scene, (first, second), marked=question.kind == "relation")
    mine, others = places_of(scene, first), places_of(scene, second)
    if question.kind == "comparison":
        found = COMPARISONS[_sign(len(mine) - len(others))]
        told += f" {len(mine)} and {len(others)}: {found}."
    elif len(mine) == len(others) == 1:
        axis = "columns" if question.asks in DIRECTIONS["columns"] else "rows"
        lines = [_line(axis, place) for place in (mine[0], others[0])]
        names = COLUMNS if axis == "columns" else ROWS
        side = _sign(names.index(lines[0]) - names.index(lines[1]))
        found = "same" if side == 0 else DIRECTIONS[axis][side > 0]
        told += f" first {PLACES[mine[0]]}, second {PLACES[others[0]]}."
        told += f" {axis} {lines[0]} and {lines[1]}: {found}."
    else:
        return told
    # What was asked stands beside what was found, so the verdict needs nothing from far back.
    return f"{told} asked {question.asks}, found {found}: {_yes(found == question.asks)}."


def _line(axis: str, place: int) -> str:
    return COLUMNS[place % 3] if axis == "columns" else ROWS[place // 3]


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


def _tally(scene: Scene, selections: tuple[Selection, ...], *, marked: bool = False) -> str:
    """Go through the caption again and count aloud; every step needs only the one before it.

    What is counted is named at every shape, and Yes or No comes before the number: a network this
    small takes one step at a time. `marked` tells the place of the first hit of each selection,
    behind a word that can be looked up again.
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
            if marked and hit and counts[number] == 1:
                told[-1] += f" {MARKS[number]} {PLACES[place]}"
        steps.append(f"{PLACES[place]} {shape.colour} {shape.kind}: {', '.join(told)}.")
    return f"{' '.join(steps)} That makes {' and '.join(map(str, counts))}."


def vocabulary_text() -> str:
    """Return a text that contains every word that `write` can produce."""
    fixed = (
        "I list every shape, then count the name the shape and colour at the At the : look for "
        "compare the numbers of and compare the places of nothing none That makes The is "
        "columns rows same asked found Yes No Nothing There is no There are A An ."
    )
    names = [*COLOURS, *KINDS, "shape", *(f"{kind}s" for kind in (*KINDS, "shape"))]
    capitals = [name.capitalize() for name in (*COLOURS, *KINDS)]
    lines = [*ROWS, *COLUMNS, *DIRECTIONS["columns"], *DIRECTIONS["rows"]]
    return " ".join(
        [fixed, *names, *capitals, *PLACES, *lines, *COMPARISONS.values(), *MARKS, *"0123456789"]
    )
