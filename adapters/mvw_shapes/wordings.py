"""The wordings of the questions: sentence templates, and what may stand in their slots.

It knows words and what each means, and no grammar beyond that: reading and writing whole
questions is the business of `questions.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from mvw_shapes.scenes import COLOURS, KINDS, PLACES

if TYPE_CHECKING:
    from mvw_shapes.scenes import Shape


@dataclass(frozen=True, slots=True)
class Selection:
    """Pick shapes by colour, by kind, by both, or all of them."""

    colour: str | None = None
    kind: str | None = None

    def matches(self, shape: Shape | None) -> bool:
        """Say whether a cell holds a shape of this selection."""
        return (
            shape is not None
            and self.colour in (None, shape.colour)
            and self.kind in (None, shape.kind)
        )

    @property
    def singular(self) -> str:
        """Name one such shape, without an article."""
        return " ".join(filter(None, (self.colour, self.kind or "shape")))

    @property
    def plural(self) -> str:
        """Name several such shapes."""
        return self.singular + "s"


ANY = Selection()

# Slots: {things}/{thing}/{a_thing} carry the first selection, {others}/{other} the second;
# {sorts} and {colour}, {a_sort} carry one half of it; {at} and {spot} the place; {in} says nothing.
TEMPLATES: tuple[tuple[str, str, str], ...] = (
    ("count", "number", "how many {things} are there{in}"),
    ("count", "number", "how many {things}"),
    ("count", "number", "how many {things} can you see{in}"),
    ("count", "number", "how many {things} do you see{in}"),
    ("count", "number", "how many {things} are{in!}"),
    ("count", "number", "how many {things} does the {picture} show"),
    ("count", "number", "how many {things} does the {picture} have"),
    ("count", "number", "how many {sorts} are {colour}"),
    ("count", "number", "how many of the {sorts} are {colour}"),
    ("count", "number", "count the {things}{in}"),
    ("count", "number", "count all the {things}{in}"),
    ("count", "number", "count all {things}{in}"),
    ("count", "number", "what is the number of {things}{in}"),
    ("count", "number", "tell me how many {things} there are{in}"),
    ("place", "object", "what is {at}"),
    ("place", "object", "what's {at}"),
    ("place", "object", "what do you see {at}"),
    ("place", "object", "what can you see {at}"),
    ("place", "object", "what is there {at}"),
    ("place", "object", "which object is {at}"),
    ("place", "object", "what object is {at}"),
    ("place", "colour", "what {hue} is {at}"),
    ("place", "colour", "which {hue} is {at}"),
    ("place", "colour", "what {hue} is the {sort} {at}"),
    ("place", "colour", "which {hue} is the {sort} {at}"),
    ("place", "colour", "what is the {hue} of the {sort} {at}"),
    ("place", "colour", "what {hue} is the {spot} {sort}"),
    ("place", "colour", "what is the {hue} of the {spot} {sort}"),
    ("place", "colour", "what {hue} does the {sort} {at} have"),
    ("place", "shape", "what shape is {at}"),
    ("place", "shape", "which shape is {at}"),
    ("place", "shape", "what is the shape {at}"),
    ("place", "shape", "what kind of shape is {at}"),
    ("place", "shape", "what shape do you see {at}"),
    ("place", "shape", "what shape can you see {at}"),
    ("existence", "any", "is there {a_thing}{in}"),
    ("existence", "any", "is there any {thing}{in}"),
    ("existence", "any", "are there any {things}{in}"),
    ("existence", "any", "are there {things}{in}"),
    ("existence", "any", "do you see {a_thing}{in}"),
    ("existence", "any", "do you see any {things}{in}"),
    ("existence", "any", "can you see {a_thing}{in}"),
    ("existence", "any", "can you see any {things}{in}"),
    ("existence", "any", "does the {picture} show {a_thing}"),
    ("existence", "any", "does the {picture} contain {a_thing}"),
    ("existence", "any", "does the {picture} contain any {things}"),
    ("existence", "any", "is {a_thing}{in!}"),
    ("existence", "any", "is there {a_thing} {at}"),
    ("existence", "any", "do you see {a_thing} {at}"),
    ("existence", "any", "can you see {a_thing} {at}"),
    ("existence", "any", "is there anything {at}"),
    ("existence", "any", "is the {sort} {at} {colour}"),
    ("existence", "any", "is the {sort} {at} {a_sort}"),
    ("comparison", "more", "are there more {things} than {others}{in}"),
    ("comparison", "more", "do you see more {things} than {others}{in}"),
    ("comparison", "more", "can you see more {things} than {others}{in}"),
    ("comparison", "more", "does the {picture} show more {things} than {others}"),
    ("comparison", "fewer", "are there fewer {things} than {others}{in}"),
    ("comparison", "fewer", "are there less {things} than {others}{in}"),
    ("comparison", "fewer", "do you see fewer {things} than {others}{in}"),
    ("comparison", "equal", "are there as many {things} as {others}{in}"),
    ("comparison", "equal", "do you see as many {things} as {others}{in}"),
    ("comparison", "equal", "are there the same number of {things} and {others}{in}"),
    ("comparison", "equal", "are there equally many {things} and {others}{in}"),
    *(
        ("relation", direction, f"is the {{thing}} {word} the {{other}}{{in}}")
        for direction, words in (
            ("left", ("left of", "to the left of", "on the left of")),
            ("right", ("right of", "to the right of", "on the right of")),
            ("above", ("above", "higher than")),
            ("below", ("below", "under", "lower than")),
        )
        for word in words
    ),
)

_SHAPE_WORDS = ("shape", "object", "thing")
_PICTURE_WORDS = ("picture", "image")
_MIDDLES = ("middle", "centre", "center")
_EDGES = {"top": ("top", "upper"), "bottom": ("bottom", "lower")}


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _singulars(colours: bool = True, sorts: bool = True) -> dict[str, Selection]:
    found: dict[str, Selection] = {}
    for colour in (None, *COLOURS) if colours else (None,):
        for kind in (None, *KINDS) if sorts else (None,):
            for noun in (kind,) if kind else _SHAPE_WORDS:
                found[" ".join(filter(None, (colour, noun)))] = Selection(colour, kind)
    return found


def _spots(corners: bool) -> dict[str, int]:
    found: dict[str, int] = {}
    for index, name in enumerate(PLACES):
        words = name.split()
        if name == "centre":
            spots = [*_MIDDLES]
        elif index in (0, 2, 6, 8):
            spots = [f"{edge} {words[1]}" for edge in _EDGES[words[0]]]
            spots += [f"{spot} corner" for spot in spots] if corners else []
        elif words[0] == "middle":
            spots = [f"{middle} {words[1]}" for middle in _MIDDLES]
        else:
            spots = [f"{words[0]} {middle}" for middle in _MIDDLES]
        found |= dict.fromkeys(spots, index)
    return found


def _places() -> dict[str, int]:
    found: dict[str, int] = {}
    for spot, index in _spots(corners=True).items():
        found[f"at the {spot}"] = found[f"in the {spot}"] = index
    for phrase, index in list(found.items()):
        for picture in _PICTURE_WORDS:
            found[f"{phrase} of the {picture}"] = index
    return found


def _surroundings() -> list[str]:
    found = [f" in {the} {word}" for the in ("the", "this") for word in _PICTURE_WORDS]
    return [*found, " here", " in total"]


@cache
def slots() -> dict[str, dict[str, object]]:
    """List for every slot the wordings that may fill it and what each means."""
    thing = _singulars()
    sort = _singulars(colours=False)
    things = {f"{text}s": value for text, value in thing.items()}
    a_thing = {with_article(text): value for text, value in thing.items()}
    around = _surroundings()
    return {
        "things": {**things},
        "others": {**things},
        "thing": {**thing},
        "other": {**thing},
        "a_thing": {**a_thing},
        "sorts": {f"{text}s": value for text, value in sort.items()},
        "sort": {word: None for word in _SHAPE_WORDS},
        "a_sort": {with_article(kind): Selection(None, kind) for kind in KINDS},
        "colour": {colour: Selection(colour) for colour in COLOURS},
        "hue": {"colour": None, "color": None},
        "picture": {word: None for word in _PICTURE_WORDS},
        "at": {**_places()},
        "spot": {**_spots(corners=False)},
        "in": {text: None for text in ("", *around)},
        "in!": {text: None for text in around if text.endswith(_PICTURE_WORDS)},
    }
