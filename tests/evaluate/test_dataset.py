"""Data sets in every form: what is asked, of which images, and what is right."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import folder, module
from making import noise

from mvw_cli.batch.source.reading import read_image
from mvw_cli.errors import UsageProblem
from mvw_cli.evaluate.dataset import Dataset, load
from mvw_cli.evaluate.public import PUBLIC


def encoded(number: int) -> str:
    return base64.b64encode(noise(number)).decode()


def write_tsv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """As pandas writes it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def pixels(dataset: Dataset) -> list[list[bytes]]:
    """The pixels of each question's images, in the order of the questions."""
    return [
        [read_image(image, None).image.convert("RGB").tobytes() for image in one.item.images]
        for one in dataset.questions
    ]


ROW = {"question": "What is it?", "answer": "x"}


def test_images_lie_in_cells_in_lists_in_other_rows_and_in_files(tmp_path: Path) -> None:
    (tmp_path / "images" / "Own").mkdir(parents=True)
    (tmp_path / "images" / "Own" / "seven.png").write_bytes(noise(7))
    (tmp_path / "eight.png").write_bytes(noise(8))
    rows = [
        {"index": 10, "image": "12", **ROW},  # ahead
        {"index": 11, "image": encoded(1), **ROW},
        {"index": 12, "image": encoded(2), **ROW},
        {"index": 13, "image": repr([encoded(3), encoded(4)]), **ROW},
        {"index": 14, "image": "11", **ROW},  # back
        {"index": 15, "image": "13", **ROW},
        {"index": 16, "image": "", **ROW},
    ]
    found = load(str(write_tsv(tmp_path / "Own.tsv", rows)), {})
    assert [one.item.id for one in found.questions] == ["10", "11", "12", "13", "14", "15"]
    assert found.left_out == {"without an image": 1}
    told = pixels(found)
    assert told[0] == told[2] and told[4] == told[1] and told[5] == told[3]
    assert len({image for one in told for image in one}) == 4
    paths = [
        {"index": 1, "image_path": "seven.png", **ROW},
        {"index": 2, "image_path": "eight.png", **ROW},
        {"index": 3, "image_path": "['eight.png', 'seven.png']", **ROW},
    ]
    told = pixels(load(str(write_tsv(tmp_path / "Own.tsv", paths)), {}))
    assert told[2] == [*told[1], *told[0]] and told[0] != told[1]


def test_an_image_that_was_passed_is_read_again_without_the_file(tmp_path: Path) -> None:
    """Many questions refer to an image of long ago, which is found by its place."""
    rows = [
        {"image": encoded(n), "index": n, "question": 'two\nlines, "quoted"', "answer": "ä"}
        for n in range(4)
    ]
    again = (3, 0, 2, 1, 0)
    rows += [{"index": 10 + n, "image": str(one), **ROW} for n, one in enumerate(again)]
    told = pixels(load(str(write_tsv(tmp_path / "t.tsv", rows)), {}))
    assert told[4:] == [told[n] for n in again]
    lines = [
        json.dumps({"image": row["image"], **ROW, "index": n}) for n, row in enumerate(rows[:4])
    ]
    (tmp_path / "l.jsonl").write_text("\n\n".join(lines))
    found = load(str(tmp_path / "l.jsonl"), {})
    turned = replace(found, questions=found.questions[::-1])
    assert pixels(turned) == told[3::-1]


def test_rows_of_jsonl_and_parquet_bring_options_and_categories(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(noise(1))
    row = {"id": "q", "image": "a.png", "question": "Which?", "answer": "two"}
    line = {**row, "options": ["one", "two"], "category": "counting"}
    (tmp_path / "own.jsonl").write_text(json.dumps(line) + "\n")
    (one,) = load(str(tmp_path / "own.jsonl"), {}).questions
    assert (one.answers, one.options) == (("B",), {"A": "one", "B": "two"})
    assert one.item.question == (
        "Question: Which?\nOptions:\nA. one\nB. two\n"
        "Please select the correct answer from the options above. \n"
    )
    import pyarrow as pa
    from pyarrow.parquet import write_table

    table = {
        "image": [{"bytes": noise(1), "path": None}],
        "index": ["q"],
        "choices": [["one", "two"]],
        **{key: [line[key]] for key in ("question", "answer", "category")},
    }
    (tmp_path / "data").mkdir()
    write_table(pa.table(table), tmp_path / "data" / "test.parquet")
    for data in (tmp_path / "data" / "test.parquet", tmp_path / "data"):
        found = load(str(data), {})
        assert [one.item.question] == [other.item.question for other in found.questions]
        assert found.questions[0].item.id == "q" and found.rule == "choice"
        assert found.questions[0].group("category") == "counting"
        assert pixels(found) == pixels(load(str(tmp_path / "own.jsonl"), {}))


def test_the_rule_goes_by_the_data(tmp_path: Path) -> None:
    image = encoded(1)
    for answers, rule in ((["Yes", "no."], "yes-no"), (["3", "red"], "exact")):
        rows = [
            {"index": n, "image": image, "question": "q", "answer": one}
            for n, one in enumerate(answers)
        ]
        assert load(str(write_tsv(tmp_path / "t.tsv", rows)), {}).rule == rule


def test_options_that_are_turned_count_together(tmp_path: Path) -> None:
    image = encoded(1)
    rows = [
        {"index": index, "image": image, **ROW, "A": "x", "B": "y", "answer": "A"}
        for index in (5, 1000005, 6)
    ]
    found = load(str(write_tsv(tmp_path / "MMBench_DEV_EN.tsv", rows)), {})
    assert [found.unit(one) for one in found.questions] == ["5", "5", "6"]


@pytest.mark.parametrize(
    ("rows", "message", "cause"),
    [
        ([{"index": 1, "image": "x"}], "Line 2", "it lacks question"),
        ([{"index": 1, "question": "q", "answer": "a"}], "Line 1", "no column image"),
        ([{"index": 1, "image": "{}", "question": "q"}], "nothing in", "no column answer"),
        ([{"index": 3, "image": "{}", **ROW}] * 2, "have the index 3", "questions 1 and 2"),
        ([{"index": 1, "image": "", **ROW}], "nothing in", "1 without an image"),
    ],
)
def test_what_is_no_data_set(
    rows: list[dict[str, Any]], message: str, cause: str, tmp_path: Path
) -> None:
    filled = [
        {key: encoded(1) if value == "{}" else value for key, value in row.items()} for row in rows
    ]
    with pytest.raises(UsageProblem) as caught:
        load(str(write_tsv(tmp_path / "t.tsv", filled)), {})
    assert message in caught.value.message and cause in str(caught.value.cause)


def test_public_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMUData", str(tmp_path))
    with pytest.raises(UsageProblem) as caught:
        load("WeMath", {})
    assert "is not on this machine" in caught.value.message
    assert str(caught.value.hint).startswith("curl -fL --create-dirs -o ")
    assert str(caught.value.hint).endswith("/utils/VLMEval/WeMath.tsv")
    with pytest.raises(UsageProblem) as caught:
        load("WeMaht", {})
    assert caught.value.cause == "did you mean `WeMath`?"
    write_tsv(tmp_path / "WeMath.tsv", [{"index": 1, "image": encoded(1), **ROW, "A": "x"}])
    found = load("WeMath", {})
    assert (found.name, found.rule) == ("WeMath", "wemath")
    assert "Please select" not in found.questions[0].item.question


CLASSES = {
    "choice": ("image_mcq.py", "ImageMCQDataset"),
    "choice without request": ("image_mcq.py", "WeMath"),
    "requirement": ("image_mcq.py", "WeMath"),
}
FULL = {
    "question": "Which of\nthem?",
    "hint": "Look left.",
    "A": "one",
    "B": "2.0",
    "C": "",
    "answer": "B",
    "requirement": "Think first.",
}


@pytest.mark.skipif(folder() is None, reason="ms-vlmeval and pandas are not installed")
@pytest.mark.parametrize("row", [FULL, {**FULL, "hint": ""}, {**FULL, "A": "", "B": ""}])
@pytest.mark.parametrize("name", ["MMStar", "WeMath", "WeMath_COT", "ChartQA_TEST", "POPE"])
def test_questions_are_put_as_the_harness_puts_them(
    name: str, row: dict[str, str], tmp_path: Path
) -> None:
    import pandas

    path = write_tsv(tmp_path / f"{name}.tsv", [{"index": 1, "image": encoded(1), **row}])
    (one,) = load(str(path), {}).questions
    line = pandas.read_csv(path, sep="\t").iloc[0]

    class Harness:
        meta_only, dataset_name = False, name

        def dump_image(self, line: Any) -> list[str]:
            return ["image.png"]

    file, kind = CLASSES.get(PUBLIC[name].prompt, ("image_base.py", "ImageBaseDataset"))
    build = module(f"dataset/{file}", f"{kind}.build_prompt", pd=pandas)["build_prompt"]
    text = build(Harness(), line)[-1]["value"]
    if PUBLIC[name].prompt == "short":
        text += "\nAnswer the question using a single word or phrase."
    assert one.item.question == text


def jsonl(folder: Path, *rows: Mapping[str, Any]) -> str:
    """Write a table of rows that have an image each."""
    (folder / "a.png").write_bytes(noise(1))
    filled = [
        {"id": str(n), "image": "a.png", "question": "q", **row} for n, row in enumerate(rows)
    ]
    (folder / "own.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in filled))
    return str(folder / "own.jsonl")


NUMBERS = ["2", "3"]
CITIES = ["Rome", "Paris"]


@pytest.mark.parametrize(
    ("options", "answer", "letter"),
    [
        *((NUMBERS, "3", "B"), (NUMBERS, "3.0", "B"), (NUMBERS, 3, "B"), (["B", "c"], "C", "B")),
        *((CITIES, "paris", "B"), (CITIES, "Paris.", "B"), (["x", "X"], "x", "A")),
        *((CITIES, "(B)", "B"), (CITIES, "B.", "B"), (CITIES, "b", "B"), (CITIES, ["?", "B"], "B")),
        *((CITIES, 0, "A"), (CITIES, 1, "B"), (["0", "1"], 1, "B"), (CITIES, "1", None)),
        *((CITIES, "C", None), (CITIES, "London", None), (["x", "x"], "x", None)),
    ],
)
def test_a_right_option_is_its_letter_its_text_or_its_place(
    options: list[str], answer: object, letter: str | None, tmp_path: Path
) -> None:
    sure = {"options": CITIES, "answer": "A"}
    data = load(jsonl(tmp_path, sure, {"options": options, "answer": answer}), {})
    assert [one.answers for one in data.questions][1:] == ([] if letter is None else [(letter,)])
    assert data.left_out == (
        {"with an answer that is none of its options": 1} if letter is None else {}
    )


UNCLEAR = {"choices": ["0", "2", "1"], "answer": 1}


@pytest.mark.parametrize(
    ("sure", "letter"),
    [({"choices": CITIES, "answer": 0}, "B"), ({"choices": ["9", "8"], "answer": 9}, "C")],
)
def test_a_number_that_is_a_place_and_a_text_means_what_the_others_mean(
    sure: dict[str, Any], letter: str, tmp_path: Path
) -> None:
    found = load(jsonl(tmp_path, UNCLEAR, sure), {}).questions
    assert [one.answers for one in found] == [(letter,), ("A",)]


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        ([UNCLEAR], "that of 0 is the text of another option"),
        (
            [UNCLEAR, {"choices": CITIES, "answer": 0}, {"choices": NUMBERS, "answer": 3}],
            "that of 0 is the text of another option",
        ),
        (
            [{"choices": CITIES, "answer": n} for n in (1, 2)],  # counted from 1
            "that of 1 is no place in its list",
        ),
    ],
)
def test_numbers_of_two_meanings_are_refused(
    rows: list[dict[str, Any]], cause: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageProblem, match="may be places in lists of options") as caught:
        load(jsonl(tmp_path, *rows), {})
    assert caught.value.cause == f"{cause}; write letters instead"


def test_places_are_read_out_of_a_column_of_another_name(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    table = {"image": [{"bytes": noise(1), "path": None}] * 2, "question": ["q"] * 2}
    table |= {"choices": [CITIES] * 2, "label": [1, 0]}
    write_table(pa.table(table), tmp_path / "hub.parquet")
    found = load(str(tmp_path / "hub.parquet"), {"answer_column": "label"}).questions
    assert [one.answers for one in found] == [("B",), ("A",)]
