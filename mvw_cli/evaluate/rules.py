"""Scorers: how an answer is judged, by rules alone.

Each returns what it has read, what that is worth, and what VLMEvalKit's rule makes of the same
answer (as ms-vlmeval 0.0.20 has it, with `--judge exact_matching`). Where the two differ, ours is
the stricter reading or mends what is known to be wrong there; a report has both.
"""

from __future__ import annotations

import re
import string
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module

from mvw_cli.bench.matching import answers_match
from mvw_cli.errors import UsageProblem
from mvw_cli.evaluate.dataset import Question
from mvw_cli.text import error_line


@dataclass(frozen=True, slots=True)
class Score:
    """What an answer is worth."""

    value: float
    """From 0 to 1."""
    read: str | None = None
    """What was taken for the answer; None where nothing could be."""
    harness: float | None = None
    """By VLMEvalKit's rule; None where it has none."""


Rule = Callable[[str, Question], Score]

# -- choices ----------------------------------------------------------------------------------

_ONE = (
    # An option's letter that stands for itself: no article before a word, and no list of several.
    r"[\s*_(\[]*(A(?!\s+(?!because|since|as\b|with)[a-z])|[B-Z])(?=[\s).\]*_:,;]|$)"
    r"(?![\s).\]*_]*(?:,|/|and|or)\s*[(\[]?[A-Z]\b)"
)
_STATED = re.compile(
    r"(?i:answer|(?:correct|right|best) (?:option|choice))[*_]*\s*(?i:is|would be|should be)?"
    r"[\s:=*_]*(?i:option|choice)?" + _ONE
)
_BOXED = re.compile(r"\\boxed\{\s*(?:\\text\{)?\s*\(?([A-Z])\)?\s*\}")
_LETTER = re.compile(r"(?i:option|choice)?[\s*_(\[]*([A-Z])(?:[*_)\].:]+(?=\s|$)|\s*$)")
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
"""Answers that VLMEvalKit takes for none."""


def stated_letter(answer: str, letters: Iterable[str]) -> str | None:
    """Read the letter of an option where an answer states one, and nothing else.

    That is: a letter with nothing but brackets and marks around it, alone or at the start (`(B)`,
    `B. Paris`); in `\\boxed{}`; or the last that is said to be the answer (`the answer is B`). A
    word that begins with such a letter, as `Based on`, is none, nor is the article in `A dog`.
    """
    known, text = set(letters), answer.strip()
    found = [*_BOXED.findall(text), *_STATED.findall(text)]
    if start := _LETTER.match(text):
        found = found or [start[1]]
    return found[-1] if found and found[-1] in known else None


def choice(answer: str, question: Question) -> Score:
    """Judge an option by its letter, or by its text where the answer is nothing else.

    Without options, and with a right answer that is no letter either, a question is an open one.
    """
    options, letters = question.options, string.ascii_uppercase[:8]
    if not options and not {*question.answers} <= {*letters}:
        return exact(answer, question)
    read = stated_letter(answer, options or letters)
    if read is None:
        same = [letter for letter, text in options.items() if answers_match(answer, text)]
        read = same[0] if len(same) == 1 else None
    theirs = can_infer(answer, options)
    return Score(float(read in question.answers), read, float(theirs in question.answers))


def can_infer(answer: str, options: Mapping[str, str]) -> str | None:
    """Find an option as VLMEvalKit does (`vlmeval/utils/matching_util.py`, `can_infer`).

    The only letter among the words, if it is one of the last five; else the only option whose text
    is in the answer. `Z` is no option; None: nothing was found.
    """
    if "Failed to obtain answer via API" not in answer:
        if any(refusal in answer for refusal in _REFUSALS):
            return "Z"
        words = re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
        there = [letter for letter in options if letter in words]
        if len(there) == 1 and words.index(there[0]) > len(words) - 5:
            return there[0]
        if not there and "Z" in words:
            return "Z"
    lower = answer.lower()
    if len(lower) > 2 * sum(map(len, options.values())):
        return None
    named = [letter for letter, text in options.items() if text.lower() in lower]
    return named[0] if len(named) == 1 else None


def first_letter(answer: str) -> str | None:
    """Read a letter as VLMEvalKit does for WeMath without a judge (`dataset/utils/wemath.py`).

    The first character after the last `Answer`, or of the whole answer where that word is not in
    it: so that `Based on …` is B.
    """
    rest = re.sub(r"[><:.]", "", answer.split("Answer")[-1].strip()).strip()
    return rest[0] if rest and rest[0] in "ABCDEFGH" else None


def wemath(answer: str, question: Question) -> Score:
    """Judge an option of WeMath."""
    ours = choice(answer, question)
    return Score(ours.value, ours.read, float(first_letter(answer) in question.answers))


def mmmu(answer: str, question: Question) -> Score:
    """Judge an option, or an open question of MMMU: which the harness makes a choice between the
    right answer and `Other Answers`.
    """
    if question.options:
        return choice(answer, question)
    right = any(answers_match(answer, one) for one in question.answers)
    options = {"A": question.item.reference or "", "B": "Other Answers"}
    return Score(float(right), answer.strip() or None, float(can_infer(answer, options) == "A"))


# -- texts ------------------------------------------------------------------------------------

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = {"a", "an", "the"}
_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
)
_DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS)}


def exact(answer: str, question: Question) -> Score:
    """Judge by equality, as everywhere in mvw; the harness's leaves only case and ends out."""
    right = any(answers_match(answer, one) for one in question.answers)
    plain = answer.strip().lower()
    same = any(plain == one.strip().lower() for one in question.answers)
    return Score(float(right), answer.strip() or None, float(same))


def yes_no(answer: str, question: Question) -> Score:
    """Judge a yes or no: the one of the two that is there, or that the answer begins with."""
    said = re.findall(r"\b(yes|no)\b", answer.lower())
    opens = re.match(r"\W*(yes|no)\b[*_]*(?=[,.:;!]|\s*$)", answer.lower())
    read = opens[1] if opens else said[0] if len(set(said)) == 1 else None
    words = set(_without_punctuation(answer.lower()).split()) & {"yes", "no"}
    theirs = words.pop() if len(words) == 1 else None
    right = {one.strip().lower() for one in question.answers}
    return Score(float(read in right), read, float(theirs in right))


def numeric(answer: str, question: Question) -> Score:
    """Judge numbers within 5 % (ChartQA, arXiv 2203.10244, section 5.1), other texts as equal.

    Ours reads `1,000`, `$5`, `12 %` and a final full stop, and compares with a right answer of 0.
    """
    return Score(
        float(any(_near(answer, one) for one in question.answers)),
        answer.strip() or None,
        float(any(relaxed(answer.strip(), one) for one in question.answers)),
    )


def relaxed(answer: str, target: str) -> bool:
    """Compare as VLMEvalKit does (`relaxed_correctness`)."""

    def number(text: str) -> float | None:
        try:
            return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
        except ValueError:
            return None

    given, wanted = number(answer), number(target)
    if given is not None and wanted:
        return abs(given - wanted) / abs(wanted) <= 0.05
    return answer.lower() == target.lower()


def _near(answer: str, target: str) -> bool:
    given, wanted = _quantity(answer), _quantity(target)
    if given is None or wanted is None:
        return answers_match(answer, target)
    return any(abs(one - wanted[0]) <= 0.05 * abs(wanted[0]) for one in given)


def _quantity(text: str) -> tuple[float, ...] | None:
    """Read a number; with a percent sign as it stands, and as a share."""
    found = re.fullmatch(r"[$€£]?\s*([+-]?(?:\d[\d,]*\.?\d*|\.\d+))\s*(%?)\.?", text.strip())
    if found is None:
        return None
    value = float(found[1].replace(",", ""))
    return (value, value / 100) if found[2] else (value,)


def anls(answer: str, question: Question) -> Score:
    """Judge by the edit distance over the length of the longer, from a half on nothing (ANLS)."""
    given = _spaced(answer)
    best = max(_likeness(given, _spaced(one), 0) for one in question.answers)
    # The harness divides by the lengths before spaces are taken together.
    longest = [
        _likeness(given, _spaced(one), max(len(answer), len(one))) for one in question.answers
    ]
    return Score(best, answer.strip() or None, max(longest))


def _spaced(text: str) -> str:
    return " ".join(text.lower().split())


def _likeness(one: str, other: str, length: int) -> float:
    length = length or max(len(one), len(other))
    share = 1 - _distance(one, other) / length if length else 1.0
    return share if share >= 0.5 else 0.0


def _distance(one: str, other: str) -> int:
    """Count the edits between two texts (Levenshtein)."""
    row = list(range(len(other) + 1))
    for place, left in enumerate(one, 1):
        before, row[0] = row[0], place
        for column, right in enumerate(other, 1):
            before, row[column] = (
                row[column],
                min(before + (left != right), row[column] + 1, row[column - 1] + 1),
            )
    return row[-1]


def contains(answer: str, question: Question) -> Score:
    """Judge whether a right answer is in the answer, as OCRBench does; formulas without spaces."""
    formula = question.group("category") == "Handwritten Mathematical Expression Recognition"

    def plain(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if formula else text.lower()

    value = float(any(plain(one) in plain(answer) for one in question.answers))
    return Score(value, answer.strip() or None, value)


def vqa(answer: str, question: Question) -> Score:
    """Judge by the share of people who said the same (VQA, arXiv 1505.00468).

    Over all ways of leaving one of them out, the third part of those who agree, at most 1. Words
    are compared without apostrophes; the harness's list of contractions comes to the same.
    """
    said = [_vqa_words(one) for one in question.answers]
    given = _vqa_words(answer)
    if len(said) == 1:
        return Score(float(said[0] == given), given or None)
    agreeing = said.count(given)
    parts = [min(1.0, (agreeing - (one == given)) / 3) for one in said]
    value = sum(parts) / len(parts)
    return Score(value, given or None, value)


def _vqa_words(text: str) -> str:
    plain = _without_punctuation(" ".join(re.split(r"[\n\t]", text)).strip()).lower()
    words = [_DIGITS.get(word, word) for word in plain.split()]
    return " ".join(word.replace("'", "") for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Take punctuation out as the VQA evaluation does: beside a space to nothing, else to one."""
    groups = re.search(r"\d,\d", text) is not None
    plain = text
    for mark in _PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside or groups else " ")
    # The harness gives re.UNICODE in the place of a count, which is 32.
    return re.sub(r"(?<!\d)\.(?!\d)", "", plain, count=32)


def mathvista(answer: str, question: Question) -> Score:
    """Judge a choice or a number of MathVista: ours the last number of the answer.

    The harness's rule takes an answer that is the number alone, and asks a judge for the others.
    """
    row = question.row
    if question.options:
        return choice(answer, question)
    wanted, kind = question.answers[0], str(row.get("answer_type"))
    if kind not in ("integer", "float"):
        same = answers_match(answer, wanted)
        return Score(float(same), answer.strip() or None, 0.0)
    found = re.findall(r"[+-]?\d[\d,]*\.?\d*", answer)
    read = found[-1].rstrip(".").replace(",", "") if found else None
    convert = int if kind == "integer" else float

    def same_as(text: str | None) -> bool:
        try:
            return text is not None and convert(text) == convert(wanted)
        except ValueError:
            return False

    ours = read is not None and (same_as(read) or answers_match(read, wanted))
    return Score(float(ours), read, float(same_as(answer)))


RULES: dict[str, Rule] = {
    "choice": choice,
    "exact": exact,
    "numeric": numeric,
    "anls": anls,
    "yes-no": yes_no,
    "contains": contains,
    "vqa": vqa,
    "wemath": wemath,
    "mmmu": mmmu,
    "mathvista": mathvista,
}


def find_rule(name: str) -> Rule:
    """Return a rule by its name, or a function of the user's own by `package.module:function`.

    It gets the answer and a dict of the row, with `question`, `answers` and `options`, and returns
    a number from 0 to 1 or whether the answer is right.

    Raises:
        UsageProblem: there is none.
    """
    if name in RULES:
        return RULES[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        known = ", ".join(RULES)
        raise UsageProblem(
            f"There is no scorer {name}",
            cause=f"known are {known}, and functions as package.module:function",
            hint="mvw eval --help",
        )
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` has it
    try:
        function = getattr(import_module(module), attribute)
    except Exception as error:
        code = f"import {module}; {module}.{attribute}"
        what = f"Cannot import the scorer {name}"
        hint = f'python -c "{code}"'
        raise UsageProblem(what, cause=error_line(error), hint=hint) from None

    def called(answer: str, question: Question) -> Score:
        row = {**question.row, "question": question.question, "options": {**question.options}}
        try:
            value = float(function(answer, {**row, "answers": [*question.answers]}))
            if not 0 <= value <= 1:
                raise ValueError(f"it returned {value}, and not a number from 0 to 1")
        except Exception as error:
            raise UsageProblem(
                f"The scorer {name} has failed on {question.item.id}",
                cause=error_line(error),
                hint="mvw eval --help",
            ) from error
        return Score(value, answer.strip() or None)

    return called
