"""The questions that the embedded model reads, written and recognised by the same templates.

What the templates cannot say, `recognise` refuses: the adapter's warning rests on that.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

from mvw_shapes.scenes import COLOURS, KINDS, Shape

QUESTION_KINDS = ("count", "place", "existence", "comparison", "relation")


@dataclass(frozen=True, slots=True)
class Selection:
    """Pick shapes by colour, by kind, by both, or all of them."""

    colour: str | None = None
    kind: str | None = None

    def matches(self, shape: Shape | None) -> bool:
        """Whether a cell holds a shape of this selection."""
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
# The order is part of what a seed draws.
_FORMS = (
    ("count", "number", "how many {things} are there{in}"),
    ("count", "number", "how many {things}"),
    ("count", "number", "how many {things} (can|do) you see{in}"),
    ("count", "number", "how many {things} are{in!}"),
    ("count", "number", "how many {things} does the {picture} (show|have)"),
    ("count", "number", "how many (|of the ){sorts} are {colour}"),
    ("count", "number", "count (the|all the|all) {things}{in}"),
    ("count", "number", "what is the number of {things}{in}"),
    ("count", "number", "tell me how many {things} there are{in}"),
    ("place", "object", "(what is|what's|what do you see|what can you see|what is there) {at}"),
    ("place", "object", "(which|what) object is {at}"),
    ("place", "colour", "(what|which) {hue} is {at}"),
    ("place", "colour", "(what|which) {hue} is the {sort} {at}"),
    ("place", "colour", "what is the {hue} of the {sort} {at}"),
    ("place", "colour", "what {hue} is the {spot} {sort}"),
    ("place", "colour", "what is the {hue} of the {spot} {sort}"),
    ("place", "colour", "what {hue} does the {sort} {at} have"),
    ("place", "shape", "(what|which) shape is {at}"),
    ("place", "shape", "what is the shape {at}"),
    ("place", "shape", "what kind of shape is {at}"),
    ("place", "shape", "what shape (do|can) you see {at}"),
    ("existence", "any", "is there ({a_thing}|any {thing}){in}"),
    ("existence", "any", "are there (any |){things}{in}"),
    ("existence", "any", "(do|can) you see ({a_thing}|any {things}){in}"),
    ("existence", "any", "does the {picture} (show|contain) {a_thing}"),
    ("existence", "any", "does the {picture} contain any {things}"),
    ("existence", "any", "is {a_thing}{in!}"),
    ("existence", "any", "(is there|do you see|can you see) {a_thing} {at}"),
    ("existence", "any", "is there anything {at}"),
    ("existence", "any", "is the {sort} {at} ({colour}|{a_sort})"),
    ("comparison", "more", "(are there|do you see|can you see) more {things} than {others}{in}"),
    ("comparison", "more", "does the {picture} show more {things} than {others}"),
    ("comparison", "fewer", "are there (fewer|less) {things} than {others}{in}"),
    ("comparison", "fewer", "do you see fewer {things} than {others}{in}"),
    ("comparison", "equal", "(are there|do you see) as many {things} as {others}{in}"),
    (
        "comparison",
        "equal",
        "are there (the same number of|equally many) {things} and {others}{in}",
    ),
    ("relation", "left", "is the {thing} (|to the |on the )left of the {other}{in}"),
    ("relation", "right", "is the {thing} (|to the |on the )right of the {other}{in}"),
    ("relation", "above", "is the {thing} (above|higher than) the {other}{in}"),
    ("relation", "below", "is the {thing} (below|under|lower than) the {other}{in}"),
)


_SHAPE_WORDS = ("shape", "object", "thing")
_PICTURE_WORDS = ("picture", "image")
_SPOTS = (
    ("top left", "upper left"),
    ("top middle", "top centre", "top center"),
    ("top right", "upper right"),
    ("middle left", "centre left", "center left"),
    ("middle", "centre", "center"),
    ("middle right", "centre right", "center right"),
    ("bottom left", "lower left"),
    ("bottom middle", "bottom centre", "bottom center"),
    ("bottom right", "lower right"),
)
"""What each place is called, the plainest first."""
_CORNERS = (0, 2, 6, 8)


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _things(colours: Sequence[str | None]) -> dict[str, Selection]:
    nouns = [(word, None) for word in _SHAPE_WORDS] + [(kind, kind) for kind in KINDS]
    return {
        f"{colour or ''} {noun}".strip(): Selection(colour, kind)
        for colour in colours
        for noun, kind in nouns
    }


def _places() -> dict[str, int]:
    found: dict[str, int] = {}
    for index, spots in enumerate(_SPOTS):
        corners = [f"{spot} corner" for spot in spots] if index in _CORNERS else []
        for spot in (*spots, *corners):
            found[f"at the {spot}"] = found[f"in the {spot}"] = index
    within = {f"{at} of the {word}": found[at] for at in found for word in _PICTURE_WORDS}
    return found | within


@cache
def slots() -> Mapping[str, Mapping[str, object]]:
    """List for every slot the wordings that may fill it and what each means."""
    thing = _things((None, *COLOURS))
    things = {f"{text}s": value for text, value in thing.items()}
    in_picture = [f" in {the} {word}" for the in ("the", "this") for word in _PICTURE_WORDS]
    return {
        "things": things,
        "others": things,
        "thing": thing,
        "other": thing,
        "a_thing": {with_article(text): value for text, value in thing.items()},
        "sorts": {f"{text}s": value for text, value in _things((None,)).items()},
        "sort": dict.fromkeys(_SHAPE_WORDS),
        "a_sort": {with_article(kind): Selection(None, kind) for kind in KINDS},
        "colour": {colour: Selection(colour) for colour in COLOURS},
        "hue": dict.fromkeys(("colour", "color")),
        "picture": dict.fromkeys(_PICTURE_WORDS),
        "at": _places(),
        "spot": {spot: index for index, spots in enumerate(_SPOTS) for spot in spots},
        "in": dict.fromkeys(("", *in_picture, " here", " in total")),
        "in!": dict.fromkeys(in_picture),
    }


@dataclass(frozen=True, slots=True)
class Question:
    """Hold what is asked, without its wording.

    `asks` is "number" for a count, "object", "colour" or "shape" for a place, "any" for existence,
    "more", "fewer" or "equal" for a comparison, and the direction for a relation.
    """

    kind: str
    asks: str
    first: Selection = ANY
    second: Selection | None = None
    place: int | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """One way to ask, with the names of its slots in their order."""

    kind: str
    asks: str
    text: str
    slots: tuple[str, ...]


def _written_out(form: str) -> list[str]:
    """Turn "(a|b) c" into "a c" and "b c"."""
    parts = (part.split("|") for part in re.split(r"[()]", form))
    return ["".join(chosen) for chosen in product(*parts)]


TEMPLATES = tuple(
    Template(kind, asks, text, tuple(re.findall(r"{(.+?)}", text)))
    for kind, asks, form in _FORMS
    for text in _written_out(form)
)


@cache
def pattern(template: Template) -> re.Pattern[str]:
    """Compile a template; all of them take half a second, so it is done where one may match."""
    written = template.text
    for name in template.slots:
        options = sorted(slots()[name], key=len, reverse=True)
        group = f"({'|'.join(re.escape(option) for option in options)})"
        written = written.replace("{" + name + "}", group, 1)
    return re.compile(written)


def normalise(text: str) -> str:
    """Bring a question to the spelling that the templates are written in."""
    text = text.lower().replace("\u2019", "'").replace("-", " ")
    return " ".join(text.split()).rstrip(" ?.!")


@cache
def recognise(text: str) -> Question | None:
    """Read a question, or return None when no template says it."""
    text = normalise(text)
    for template in TEMPLATES:
        if not text.startswith(template.text.partition("{")[0]):
            continue
        if match := pattern(template).fullmatch(text):
            return _read(template, match.groups())
    return None


def _read(template: Template, texts: Sequence[str]) -> Question:
    colour = kind = place = second = None
    for slot, text in zip(template.slots, texts, strict=True):
        value = slots()[slot][text]
        if slot in ("others", "other"):
            assert isinstance(value, Selection)
            second = value
        elif isinstance(value, Selection):
            colour, kind = colour or value.colour, kind or value.kind
        elif isinstance(value, int):
            place = value
    return Question(template.kind, template.asks, Selection(colour, kind), second, place)


@cache
def _wordings(slot: str, question: Question) -> tuple[str, ...]:
    """List the texts that fill a slot with what a question means there, the plainest first."""
    meaning: object = None
    if slot in ("things", "thing", "a_thing"):
        meaning = question.first
    elif slot in ("sorts", "a_sort"):
        meaning = Selection(None, question.first.kind)
    elif slot == "colour":
        meaning = Selection(question.first.colour)
    elif slot in ("others", "other"):
        meaning = question.second
    elif slot in ("at", "spot"):
        meaning = question.place
    return tuple(text for text, value in slots()[slot].items() if value == meaning)


@cache
def _templates_of(question: Question) -> tuple[Template, ...]:
    """List the templates that say a question and lose no part of it."""
    found = []
    for template in TEMPLATES:
        if (template.kind, template.asks) == (question.kind, question.asks):
            wordings = [_wordings(slot, question) for slot in template.slots]
            if all(wordings) and _read(template, [texts[0] for texts in wordings]) == question:
                found.append(template)
    return tuple(found)


def phrase(question: Question, rng: random.Random) -> str:
    """Word a question in one of its many ways, lower-case and without a closing mark."""
    template = rng.choice(_templates_of(question))
    text = template.text
    for slot in template.slots:
        options = _wordings(slot, question)
        # The plainest wording of a slot is what most people type, so it gets half of the weight.
        option = options[0] if rng.random() < 0.4 else rng.choice(options)
        text = text.replace("{" + slot + "}", option, 1)
    return text
