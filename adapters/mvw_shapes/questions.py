"""The questions that the embedded model reads, written and recognised by the same templates.

What the templates cannot say, `recognise` refuses: the adapter's warning rests on that.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
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


def _written_out(form: str) -> list[str]:
    """Turn "(a|b) c" into "a c" and "b c"."""
    parts = (part.split("|") for part in re.split(r"[()]", form))
    return ["".join(chosen) for chosen in product(*parts)]


TEMPLATES = tuple((kind, asks, text) for kind, asks, form in _FORMS for text in _written_out(form))

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


def _singulars(colours: Iterable[str | None]) -> dict[str, Selection]:
    found: dict[str, Selection] = {}
    for colour in colours:
        for kind in (None, *KINDS):
            for noun in (kind,) if kind else _SHAPE_WORDS:
                found[" ".join(filter(None, (colour, noun)))] = Selection(colour, kind)
    return found


def _places() -> dict[str, int]:
    found: dict[str, int] = {}
    for index, spots in enumerate(_SPOTS):
        corners = [f"{spot} corner" for spot in spots] if index in _CORNERS else []
        for spot in (*spots, *corners):
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
    thing = _singulars((None, *COLOURS))
    sort = _singulars((None,))
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
        "spot": {spot: index for index, spots in enumerate(_SPOTS) for spot in spots},
        "in": {text: None for text in ("", *around)},
        "in!": {text: None for text in around if text.endswith(_PICTURE_WORDS)},
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
class _Template:
    kind: str
    asks: str
    text: str

    @property
    def slots(self) -> tuple[str, ...]:
        return tuple(re.findall(r"{(.+?)}", self.text))


_TEMPLATES = tuple(_Template(*template) for template in TEMPLATES)


@cache
def _pattern(template: _Template) -> re.Pattern[str]:
    """Compile a template; all of them take half a second, so it is done where one may match."""
    pattern = template.text
    for name in template.slots:
        options = sorted(slots()[name], key=len, reverse=True)
        group = f"({'|'.join(re.escape(option) for option in options)})"
        pattern = pattern.replace("{" + name + "}", group, 1)
    return re.compile(pattern)


@cache
def _wordings(slot: str, value: object) -> tuple[str, ...]:
    """List the texts that fill a slot with one meaning, the plainest first."""
    return tuple(text for text, meaning in slots()[slot].items() if meaning == value)


def normalise(text: str) -> str:
    """Bring a question to the spelling that the templates are written in."""
    text = text.lower().replace("\u2019", "'").replace("-", " ")
    return " ".join(text.split()).rstrip(" ?.!")


@cache
def recognise(text: str) -> Question | None:
    """Read a question, or return None when no template says it."""
    text = normalise(text)
    for template in _TEMPLATES:
        if not text.startswith(template.text.partition("{")[0]):
            continue
        if match := _pattern(template).fullmatch(text):
            return _read(template, match.groups())
    return None


def _read(template: _Template, texts: tuple[str, ...]) -> Question:
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


def _says(template: _Template, question: Question) -> bool:
    """Whether a template can carry a question without losing any part of it."""
    first, slots = question.first, template.slots
    if (template.kind, template.asks) != (question.kind, question.asks):
        return False
    if ("at" in slots or "spot" in slots) != (question.place is not None):
        return False
    whole = any(slot in slots for slot in ("things", "thing", "a_thing"))
    for part, said_by in ((first.kind, {"sorts", "a_sort"}), (first.colour, {"colour"})):
        if part and not whole and not said_by & set(slots):
            return False
    return bool(first.kind or "a_sort" not in slots) and bool(first.colour or "colour" not in slots)


@cache
def _speakers(question: Question) -> tuple[_Template, ...]:
    return tuple(template for template in _TEMPLATES if _says(template, question))


def phrase(question: Question, rng: random.Random) -> str:
    """Word a question in one of its many ways, lower-case and without a closing mark."""
    template = rng.choice(_speakers(question))
    text = template.text
    first = question.first
    meanings: dict[str, object] = {
        "others": question.second,
        "other": question.second,
        "at": question.place,
        "spot": question.place,
        "colour": Selection(first.colour),
        "sorts": Selection(None, first.kind),
        "a_sort": Selection(None, first.kind),
        "things": first,
        "thing": first,
        "a_thing": first,
    }
    for slot in template.slots:
        options = _wordings(slot, meanings.get(slot))
        # The plainest wording of a slot is what most people type, so it gets half of the weight.
        option = options[0] if rng.random() < 0.4 else rng.choice(options)
        text = text.replace("{" + slot + "}", option, 1)
    return text


@cache
def vocabulary() -> frozenset[str]:
    """Collect every word that a template can contain."""
    texts = [re.sub(r"{.+?}", " ", text) for _, _, text in TEMPLATES]
    texts += [text for slot in slots().values() for text in slot]
    return frozenset(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text))


def unknown_words(text: str) -> list[str]:
    """List the words of a question that no template contains, each once, in order."""
    words = re.findall(r"\w+", normalise(text))
    return list(dict.fromkeys(word for word in words if word not in vocabulary()))
