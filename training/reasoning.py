"""The four stages that lead to the true answer to a question about a scene.

SUMMARY tells what will be done and needs no look at the picture. CAPTION lists every shape in
reading order. REASONING and CONCLUSION follow from the question and the caption alone, which is
what makes withdrawal after the caption free. The stage tags are those of LLaVA-CoT
(https://arxiv.org/abs/2411.10440, section 3.1).
"""

from __future__ import annotations

from mvw_shapes.questions import Question, Selection
from mvw_shapes.samples import places_of, true_answer
from mvw_shapes.scenes import COLOURS, KINDS, Scene

STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
TAGS = tuple(tag for stage in STAGES for tag in (f"<{stage}>", f"</{stage}>"))

PLACES = (
    "top left",
    "top middle",
    "top right",
    "middle left",
    "centre",
    "middle right",
    "bottom left",
    "bottom middle",
    "bottom right",
)
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")
COMPARISONS = {1: "more", 0: "equal", -1: "fewer"}
DIRECTIONS = {"columns": ("left", "right"), "rows": ("above", "below")}
MARKS = ("first", "second")


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


def _yes(holds: bool) -> str:
    return "Yes" if holds else "No"


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


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
