"""VLMEvalKit (ms-vlmeval), with mvw in its process and behind an endpoint."""

from __future__ import annotations

import base64
import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from held_out import Scene
from serving_process import serving

from mvw_cli.evaluate.dataset import load
from mvw_cli.evaluate.rules import choice

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
