"""The questions that the embedded model reads, written and recognised by the same templates.

It knows scenes only by their cells, and nothing of pictures, tokens or models. What the templates
cannot say, `recognise` refuses: the adapter's warning rests on that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from mvw_shapes.wordings import ANY, TEMPLATES, Selection, slots

if TYPE_CHECKING:
    import random

QUESTION_KINDS = ("count", "place", "existence", "comparison", "relation")


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
    slots: tuple[str, ...]
    pattern: re.Pattern[str]


@cache
def _templates() -> tuple[_Template, ...]:
    made = []
    for kind, asks, text in TEMPLATES:
        names = tuple(re.findall(r"{(.+?)}", text))
        pattern = text
        for name in names:
            options = sorted(slots()[name], key=len, reverse=True)
            group = f"({'|'.join(re.escape(option) for option in options)})"
            pattern = pattern.replace("{" + name + "}", group, 1)
        made.append(_Template(kind, asks, text, names, re.compile(pattern)))
    return tuple(made)


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
    for template in _templates():
        if match := template.pattern.fullmatch(text):
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
    """Say whether a template can carry a question without losing any part of it."""
    first, slots = question.first, template.slots
    if (template.kind, template.asks) != (question.kind, question.asks):
        return False
    if ("at" in slots or "spot" in slots) != (question.place is not None):
        return False
    whole = any(slot in slots for slot in ("things", "thing", "a_thing"))
    says_kind, says_colour = whole or "sorts" in slots, whole or "colour" in slots
    if (first.kind and not (says_kind or "a_sort" in slots)) or (first.colour and not says_colour):
        return False
    return not ("a_sort" in slots and not first.kind) and not (
        "colour" in slots and not first.colour
    )


@cache
def _speakers(question: Question) -> tuple[_Template, ...]:
    return tuple(template for template in _templates() if _says(template, question))


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
