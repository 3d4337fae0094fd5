"""VLMEvalKit (ms-vlmeval), with mvw in its process and behind an endpoint."""

from __future__ import annotations

import base64
import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from held_out import Scene
from serving_process import serving

from mvw_cli.evaluate.dataset import Question, load
from mvw_cli.evaluate.rules import choice, first_letter
from mvw_cli.evaluate.wemath import four_dimensions

Run = Callable[..., str]
ARMS = {
    "shapes": (),
    "shapes-mvw16": ("--m", "16"),
    "shapes-never": ("--no-withdrawal",),
}


@pytest.fixture
def data(scenes: list[Scene], tmp_path: Path) -> Path:
    """LMUData with the scenes: as questions with options, and as they are."""
    folder = tmp_path / "LMUData"
    folder.mkdir()
    wrong = {"A": "Seven", "B": "No", "C": "A red star", "D": "Yes"}
    for name, options in (("Options", wrong), ("Plain", {})):
        with (folder / f"{name}.tsv").open("w", newline="") as file:
            table = csv.writer(file, delimiter="\t")
            table.writerow(["index", "image", "question", *options, "answer"])
            for number, scene in enumerate(scenes):
                image = base64.b64encode(scene.image.read_bytes()).decode()
                answer = "C" if options else scene.answer
                row = [number, image, scene.question, *options.values(), answer]
                table.writerow(row)
    return folder


def environment(data: Path) -> dict[str, str]:
    return {"LMUData": str(data), "PRED_FORMAT": "tsv", "EVAL_FORMAT": "json"}


def predictions(folder: Path, model: str, data: str) -> list[str]:
    [file] = (folder / "outputs" / model).rglob(f"{model}_{data}.tsv")
    with file.open(newline="") as lines:
        return [row["prediction"] for row in csv.DictReader(lines, delimiter="\t")]


def test_profiles_are_models_of_the_harness(
    data: Path, scenes: list[Scene], infer: Run, run_in: Run, tmp_path: Path
) -> None:
    words = ["--data", "Options", "Plain", "--model", *ARMS, "--judge", "exact_matching"]
    said = run_in("VLMEVALKIT", "mvw_cli.integrations.vlmeval", *words, **environment(data))
    questions = load(str(data / "Options.tsv"), {}).questions
    for model, options in ARMS.items():
        expected = [infer(scene, *options) for scene in scenes]
        assert predictions(tmp_path, model, "Plain") == expected
        # What is asked where there are options is the harness's own prompt.
        asked = [one.item.question for one in questions]
        expected = [
            infer(scene, *options, question=question)
            for scene, question in zip(scenes, asked, strict=True)
        ]
        assert predictions(tmp_path, model, "Options") == expected
        right = [
            choice(answer, one).harness for answer, one in zip(expected, questions, strict=True)
        ]
        [scores] = (tmp_path / "outputs" / model).rglob(f"{model}_Options_acc.csv")
        assert float(scores.read_text().split(",")[-1].strip('"\n')) == sum(right) / len(right), (
            said
        )
    arms = [predictions(tmp_path, model, "Plain") for model in ARMS]
    assert arms[1] != arms[2] == [scene.answer for scene in scenes]


def test_the_harness_asks_an_endpoint(
    data: Path, scenes: list[Scene], infer: Run, run_in: Run, tmp_path: Path
) -> None:
    with serving(tmp_path, "--m", "16") as served:
        words = ["--base-url", served.url, "--model", "shapes", "--key", "none", "--retry", "1"]
        run_in("VLMEVALKIT", "vlmeval", "--data", "Plain", *words, **environment(data))
    expected = [infer(scene, "--m", "16") for scene in scenes]
    assert predictions(tmp_path, "shapes", "Plain") == expected


WEMATH = """
import sys
from vlmeval.dataset.image_mcq import WeMath
from mvw_cli.integrations.vlmeval import main

WeMath.DATASET_MD5 = {}  # or it would fetch the whole data set
sys.exit(main(sys.argv[1:]))
"""


def test_wemath_is_answered_and_scored_by_the_harness(
    scenes: list[Scene], infer: Run, run_in: Run, tmp_path: Path
) -> None:
    """What is read in an answer is right, but for the second steps of both problems."""
    keys = [*("1", "2", "multi"), *("1", "2", "3", "multi")]
    rows = []
    for number, part in enumerate(keys):
        steps = 2 if number < 3 else 3
        rows.append([scenes[number % len(scenes)], f"{steps}-1", f"{steps}steps_{part}", "A"])
    options = {"A": "Yes", "B": "No"}
    file = tmp_path / "LMUData" / "WeMath.tsv"
    file.parent.mkdir()

    def write() -> list[Question]:
        with file.open("w", newline="") as lines:
            table = csv.writer(lines, delimiter="\t")
            about = ("answer", "ID", "key", "knowledge concept")
            table.writerow(["index", "image", "question", *options, *about])
            for number, (scene, problem, key, right) in enumerate(rows):
                image = base64.b64encode(scene.image.read_bytes()).decode()
                asked = [number, image, scene.question, *options.values()]
                table.writerow([*asked, right, problem, key, "Area of Squares"])
        return load(str(file), {}).questions

    answers = [
        infer(row[0], "--no-withdrawal", question=one.item.question)
        for row, one in zip(rows, write(), strict=True)
    ]
    # The prompt is none of the model's world: what it answers differs from processor to processor.
    for row, answer in zip(rows, answers, strict=True):
        if not row[2].endswith("_2"):
            row[3] = first_letter(answer) or "A"
    write()
    (tmp_path / "wemath.py").write_text(WEMATH)
    words = ["--data", "WeMath", "--model", "shapes-never", "--judge", "exact_matching"]
    said = run_in("VLMEVALKIT", "wemath", *words, **environment(file.parent))
    assert predictions(tmp_path, "shapes-never", "WeMath") == answers
    right = [first_letter(answer) == row[3] for row, answer in zip(rows, answers, strict=True)]
    assert any(right), said
    expected = four_dimensions((row[1], row[2], one) for row, one in zip(rows, right, strict=True))
    [scores] = (tmp_path / "outputs").rglob("*WeMath*_score.csv")
    [row] = csv.DictReader(scores.read_text().splitlines())
    assert row["Score (Strict)"] == f"{expected.vlmevalkit_score_strict:.2%}", row
    assert row["Score (Loose)"] == f"{expected.vlmevalkit_score_loose:.2%}", row
    assert row["RoteMemorization (Strict)"].endswith(f"({expected.rote_memorization_strict})"), row
