"""lmms-eval, with the model that it finds by its entry point."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from held_out import Scene
from PIL import Image

Run = Callable[..., str]
TASK = """
task: own-scenes
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_visual: !function pictures.of
doc_to_text: question
doc_to_target: answer
generation_kwargs: {max_new_tokens: 128, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
PICTURES = """
from PIL import Image

def of(doc):
    return [Image.open(doc["image"])]
"""


@pytest.fixture(scope="session")
def unsure(scenes: list[Scene], tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    """The same questions of a picture that is none of the model's world: its answers vary."""
    image = tmp_path_factory.mktemp("unsure") / "gradient.png"
    Image.linear_gradient("L").resize((336, 336)).convert("RGB").save(image)
    return [Scene(image, scene.question, "") for scene in scenes]


@pytest.fixture
def answers(run_in: Run, tmp_path: Path) -> Callable[..., list[Any]]:
    """Run the harness on scenes; return its samples."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "scenes.jsonl"
    (folder / "scenes.yaml").write_text(TASK.replace("DATA", str(data)))
    (folder / "pictures.py").write_text(PICTURES)

    def run(scenes: list[Scene], *words: str) -> list[Any]:
        lines = [
            {"image": str(one.image), "question": one.question, "answer": one.answer}
            for one in scenes
        ]
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        out = ["--log_samples", "--output_path", str(tmp_path / "out")]
        task = ["--include_path", str(folder), "--tasks", "own-scenes"]
        home = {"HF_HOME": str(tmp_path / "hf")}
        run_in("LMMS_EVAL", "lmms_eval", "--model", "mvw", *task, *words, *out, **home)
        [file] = (tmp_path / "out").rglob("*_samples_*.jsonl")
        return [json.loads(line) for line in file.read_text().splitlines()]

    return run


def test_the_answers_are_those_of_mvw_infer(
    answers: Callable[..., list[Any]], scenes: list[Scene], infer: Run
) -> None:
    found = answers(scenes, "--model_args", "profile=shapes,m=16", "--batch_size", "4")
    assert [one["filtered_resps"] for one in found] == [infer(one, "--m", "16") for one in scenes]
    for sample, scene in zip(found, scenes, strict=True):
        document = json.loads(infer(scene, "--m", "16", "--json"))
        [counts] = sample["token_counts"]
        assert counts == {
            "input_tokens": document["prompt_tokens"],
            "output_tokens": document["generated_tokens"],
        }


def test_a_task_says_how_tokens_are_chosen(
    answers: Callable[..., list[Any]], unsure: list[Scene], infer: Run
) -> None:
    asked = "temperature=2,top_p=0.99,do_sample=True,max_new_tokens=100,until=o"
    found = answers(unsure, "--model_args", "policy=none,generation.seed=5", "--gen_kwargs", asked)
    options = ["--no-withdrawal", "--seed", "5", "--temperature", "2", "--top-p", "0.99"]
    expected = [infer(one, *options, "--max-new-tokens", "100") for one in unsure]
    assert any("o" in text for text in expected)
    assert [one["filtered_resps"] for one in found] == [text.partition("o")[0] for text in expected]


DRIVE = """
import json, sys
from lmms_eval.api.instance import Instance
from mvw_cli.errors import UsageProblem
from mvw_cli.integrations.lmms_eval import Mvw

def messages(doc):
    image = {"type": "image", "url": doc["image"]}
    return [{"role": "user", "content": [image, {"type": "text", "text": doc["question"]}]}]

def instance(messages=messages, **more):
    asked = {"temperature": 2, "top_p": 0.99, "max_new_tokens": 100, "do_sample": True, **more}
    told = {"task": "t", "doc_id": 0, "repeats": 4}
    return Instance("generate_until", ("", messages, asked, 0, "t", "test"), 0, told)

def refusal(one):
    try:
        model.generate_until([one])
    except UsageProblem as error:
        return error.cause

model = Mvw(profile="shapes", batch_size="auto", policy="none")
model.task_dict = {"t": {"test": [json.loads(sys.argv[1])]}}
said = {"role": "assistant", "content": [{"type": "text", "text": "No"}]}
film = {"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}
print(json.dumps({
    "texts": [one.text for one in model.generate_until([instance()] * 4)],
    "greedy": [one.text for one in model.generate_until([instance(do_sample=False)])],
    "refused": [
        refusal(instance(num_beams=4)),
        refusal(instance(lambda doc: [*messages(doc), said, *messages(doc)])),
        refusal(instance(lambda doc: [film])),
    ],
}))
"""


def test_repeats_have_a_seed_each_and_what_cannot_be_had_is_refused(
    unsure: list[Scene], run_in: Run, infer: Run, tmp_path: Path
) -> None:
    (tmp_path / "drive.py").write_text(DRIVE)
    doc = json.dumps({"image": str(unsure[1].image), "question": unsure[1].question})
    found = json.loads(run_in("LMMS_EVAL", "drive", doc).splitlines()[-1])
    short = ["--no-withdrawal", "--max-new-tokens", "100"]
    sampled = [*short, "--temperature", "2", "--top-p", "0.99", "--seed"]
    expected = [infer(unsure[1], *sampled, str(seed)) for seed in range(4)]
    assert len(set(expected)) > 1
    assert found["texts"] == expected
    assert found["greedy"] == [infer(unsure[1], *short)]
    assert found["refused"] == [
        "mvw chooses one token at a time",
        "its messages are of: user, assistant, user",
        "it has: video",
    ]
