"""The questions of a data set: what is asked, the options, the right answers, and the categories.

A table as VLMEvalKit has it, JSONL as `mvw samples` writes, Parquet, a folder of a dataset, or the
name of a public one. Cells are taken as they are written, where the harness's own reading through
pandas takes `None`, `NA` or `null` for no option at all.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import eq
from pathlib import Path
from typing import Any

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.source.listing import holds_tables, list_items
from mvw_cli.batch.source.paths import TABLE_SUFFIXES, Source, suffix
from mvw_cli.batch.source.questions import SUFFIXES
from mvw_cli.bench.matching import answers_match
from mvw_cli.errors import UsageProblem
from mvw_cli.evaluate.public import PUBLIC, Prompt, Public, find
from mvw_cli.text import one_line

GROUPS = ("split", "l2-category", "category")
"""Columns that figures are also told apart by."""
_YES_NO = {"yes", "no"}


@dataclass(frozen=True, slots=True)
class Question:
    """One question, with all that its answer is judged by."""

    item: Item
    """As it is asked."""
    question: str
    """As it stands in the data, without options and requests."""
    answers: tuple[str, ...]
    """Of which one is enough; of choices the letter."""
    options: Mapping[str, str] = field(default_factory=dict)
    """By letter; empty where none are given."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """All columns but those of images."""

    def group(self, column: str) -> str | None:
        """Name the group that it belongs to."""
        value = self.row.get(column)
        return None if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set, read."""

    name: str
    path: str
    rule: str
    """By which it is scored unless the user says otherwise."""
    questions: tuple[Question, ...]
    circular: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Rows that can't be asked or scored, by why."""

    def unit(self, question: Question) -> str:
        """Name what is counted: a question, or where options are turned all of its rows."""
        id = question.item.id
        if not self.circular:
            return id
        base = question.row.get("g_index")
        if base is None and id.isdecimal():
            base = int(id) % 10**6
        return id if base is None else str(base)


def load(data: str, columns: Mapping[str, Any], limit: int | None = None) -> Dataset:
    """Read a data set; no image is opened.

    Args:
        data: file, folder, or the name of a public data set.
        columns: `image_column` and so on, as of `Source`.
        limit: take the first so many questions.

    Raises:
        UsageProblem: it is not there, or no such data set as it should be; names row and cause.
    """
    name, path = os.path.splitext(os.path.basename(os.path.normpath(data)))[0], data
    if not os.path.lexists(data) and "://" not in data:
        name, path = data, find(data)
    public = PUBLIC.get(name.removesuffix("_local"))
    is_questions = suffix(path) in SUFFIXES
    if not is_questions and suffix(path) not in TABLE_SUFFIXES and os.path.isfile(path):
        raise UsageProblem(
            f"{path} is no data set",
            cause="a data set is a .tsv, .csv, .jsonl, .parquet or .arrow file, or a folder",
            hint=f"file {shlex.quote(path)}",
        )
    source = Source(
        () if is_questions else (path,),
        questions=path if is_questions else None,
        whole=True,
        command=("mvw", "eval"),
        **columns,
    )
    if os.path.isdir(path) and not holds_tables(path, source):
        raise _no_table(path)
    items = list(list_items(source))
    _check_unique(items, path)
    left_out: dict[str, int] = {}
    places = _places(items, columns.get("answer_column") or "answer", path)
    found = _questions(_placed(items, path, public), public, places, left_out)
    questions = tuple(islice(found, limit))
    if not questions:
        raise _nothing_to_score(path, items, left_out)
    return Dataset(
        name,
        path,
        public.rule if public is not None else _rule(questions),
        questions,
        circular=public is not None and public.circular,
        left_out=left_out,
    )


def _no_table(folder: str) -> UsageProblem:
    files = [name for name in os.listdir(folder) if suffix(name) in SUFFIXES]
    files.sort(key=lambda name: (name != "questions.jsonl", name))
    table = shlex.quote(os.path.join(folder, files[0])) if files else ""
    return UsageProblem(
        f"{folder} is no data set",
        cause="a folder is one if it is of .parquet or .arrow files; else name the table in it",
        hint=f"mvw eval {table}" if files else f"ls {shlex.quote(folder)}",
    )


def _check_unique(items: Sequence[Item], path: str) -> None:
    seen: dict[str, int] = {}
    for number, item in enumerate(items, 1):
        if item.id in seen:
            raise UsageProblem(
                f"Two questions of {path} have the index {one_line(item.id)[:40]}",
                cause=f"they are its questions {seen[item.id]} and {number}; each has its own",
                hint=f"head -c 300 {shlex.quote(path)}",
            )
        seen[item.id] = number


def _nothing_to_score(path: str, items: Sequence[Item], left_out: Mapping[str, int]) -> Exception:
    cause = ", ".join(f"{count:,} {why}" for why, count in left_out.items()) or "it has no rows"
    if items and not any(item.reference for item in items):
        named = ", ".join(one_line(str(name))[:40] for name in items[0].values) or "none"
        cause = f"there is no column answer with anything in it; its columns are: {named}"
    what = f"There is nothing in {path} that could be scored"
    return UsageProblem(what, cause=cause, hint="mvw eval --help")


def _placed(items: Sequence[Item], path: str, public: Public | None) -> Iterator[Item]:
    """Put images in the place of references to other rows, and find the files of relative paths."""
    by_id = {item.id: item for item in items}
    folder = os.path.dirname(path)
    below = os.path.join(folder, "images", (public and public.images) or Path(path).stem)
    for item in items:
        images: list[ImageRef] = []
        for image in item.images:
            other = (
                by_id.get(os.path.relpath(image.path, folder or ".")) if image.row is None else None
            )
            if other is not None and all(one.row is not None for one in other.images):
                images += other.images
                continue
            if image.row is None and not os.path.exists(image.path):
                near = os.path.join(below, os.path.relpath(image.path, folder or "."))
                image = ImageRef(near) if os.path.exists(near) else image
            images.append(image)
        yield replace(item, images=tuple(images))


def _questions(
    items: Iterator[Item],
    public: Public | None,
    places: Mapping[str, str],
    left_out: dict[str, int],
) -> Iterator[Question]:
    for item in items:
        options, why = _options(item.values), None
        answers = tuple(map(str, as_list(item.reference)))
        if options:
            letters = (places.get(item.id) or _letter(answer, options) for answer in answers)
            answers = tuple(filter(None, letters))
        if not item.reference:
            why = "without an answer"
        elif not item.images:
            why = "without an image"
        elif not answers:
            why = "with an answer that is none of its options"
        if why is not None:
            left_out[why] = left_out.get(why, 0) + 1
            continue
        prompt: Prompt = "choice" if options else "plain"
        text = _asked(item.question, options, item.values, public.prompt if public else prompt)
        asked = replace(item, question=text, reference=item.reference, values={})
        yield Question(asked, item.question, answers, options, item.values)


def as_list(value: object) -> list[Any]:
    """Return the entries of a list, which may be written as Python does; else the value alone."""
    if isinstance(value, str) and value[:1] == "[" and value[-1:] == "]":
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(value)
    return list(value) if isinstance(value, list | tuple) else [value]


def _listed(row: Mapping[str, Any]) -> list[str]:
    """Return the options that a row has as a list; those in columns A, B, … go before it."""
    listed = as_list(row.get("options") or row.get("choices"))
    return [] if row.get("A") or row.get("B") or len(listed) < 2 else [*map(str, listed)]


def _options(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the options by their letters: columns A, B, …, or a list."""
    if listed := _listed(row):
        return dict(zip(string.ascii_uppercase, listed, strict=False))
    found = {letter: row.get(letter) for letter in string.ascii_uppercase}
    return {letter: str(text) for letter, text in found.items() if text not in (None, "")}


def _letter(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of a right answer, which may be written out; None: it is no option."""
    letter = answer.strip("(). ").upper()
    return letter if letter in options else _named(answer, options)


def _named(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the one option that has this text."""
    for same in (eq, answers_match):
        found = [letter for letter, text in options.items() if same(answer.strip(), text.strip())]
        if len(found) == 1:
            return found[0]
    return None


def _places(items: Sequence[Item], column: str, path: str) -> dict[str, str]:
    """Return the letters, by id, of answers that are the place of an option in a list, from 0.

    So the Hub's datasets have them: whole numbers, not text. One that is the text of an option as
    well means what those of the other rows mean, of which only one can be.

    Raises:
        UsageProblem: that leaves two meanings.
    """
    places: dict[str, str] = {}
    either: dict[str, str] = {}
    texts: list[str] = []
    beyond: list[str] = []
    for item in items:
        number, options = item.values.get(column), _options(item.values)
        if not isinstance(number, int) or isinstance(number, bool) or not _listed(item.values):
            continue
        named, letters = _named(str(number), options), dict(enumerate(options))
        if number not in letters:
            (texts if named else beyond).append(item.id)
        elif letters[number] != named:
            (either if named else places)[item.id] = letters[number]
    doubt = None
    if either and bool(places) == bool(texts):
        doubt = f"that of {one_line(next(iter(either)))[:40]} is the text of another option"
    elif beyond and not texts and (places or either):
        doubt = f"that of {one_line(beyond[0])[:40]} is no place in its list"
    if doubt is not None:
        raise UsageProblem(
            f"The answers of {path} may be places in lists of options, from 0, or not",
            cause=f"{doubt}; write letters instead",
            hint="mvw eval --help",
        )
    return places if texts else places | either


def _asked(
    question: str, options: Mapping[str, str], row: Mapping[str, Any], prompt: Prompt
) -> str:
    """Write a question as VLMEvalKit puts it to a model (`build_prompt` of its data sets)."""
    if prompt == "plain":
        return question
    if prompt == "short":
        return f"{question}\nAnswer the question using a single word or phrase."
    hint = row.get("hint")
    text = f"Hint: {hint}\n" if hint else ""
    text += f"Question: {question}\n"
    if options:
        text += "Options:\n" + "".join(f"{key}. {option}\n" for key, option in options.items())
        if prompt == "choice":
            text += "Please select the correct answer from the options above. \n"
    if prompt == "requirement" and row.get("requirement"):
        text += f"\n{row['requirement']}"
    return text


def _rule(questions: Sequence[Question]) -> str:
    """Choose the rule for a data set that is not known by name."""
    if any(question.options for question in questions):
        return "choice"
    said = {re.sub(r"\W", "", answer).lower() for one in questions for answer in one.answers}
    return "yes-no" if said <= _YES_NO else "exact"
