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
from pathlib import Path
from typing import Any

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.source.listing import list_items
from mvw_cli.batch.source.paths import TABLE_SUFFIXES, Source, suffix
from mvw_cli.batch.source.questions import SUFFIXES
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
    items = list(list_items(source))
    _check_unique(items, path)
    left_out: dict[str, int] = {}
    found = islice(_questions(_placed(items, path, public), public, left_out), limit)
    questions = tuple(found)
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
    items: Iterator[Item], public: Public | None, left_out: dict[str, int]
) -> Iterator[Question]:
    for item in items:
        if not item.images or not item.reference:
            why = "without an image" if item.reference else "without an answer"
            left_out[why] = left_out.get(why, 0) + 1
            continue
        options = _options(item.values)
        answers = tuple(map(str, as_list(item.reference)))
        if options:
            answers = tuple(_letter(answer, options) for answer in answers)
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


def _options(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the options by their letters: columns A, B, …, or a list."""
    listed = row.get("options") or row.get("choices")
    if listed and not (row.get("A") or row.get("B")) and len(as_list(listed)) > 1:
        return dict(zip(string.ascii_uppercase, map(str, as_list(listed)), strict=False))
    found = {letter: row.get(letter) for letter in string.ascii_uppercase}
    return {letter: str(text) for letter, text in found.items() if text not in (None, "")}


def _letter(answer: str, options: Mapping[str, str]) -> str:
    """Return the letter of a right answer, which may be written out."""
    plain = answer.strip()
    if plain.upper() in options or len(plain) == 1:
        return plain.upper()
    named = [letter for letter, text in options.items() if text.strip() == plain]
    return named[0] if len(named) == 1 else plain


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
