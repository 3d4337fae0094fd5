"""Checkpoints as they lie on the hub, served by what `pip install .` brings and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_folder import FOLDERS, HubFolder, write_hub_folder
from plain_install import required, run_plain

from mvw_cli.__main__ import main


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    assert main(["samples", str(folder), "--count", "2", "--seed", "841"]) == 0
    return folder


def test_what_an_install_brings_is_no_more_than_is_required() -> None:
    assert {"torch", "transformers", "pillow"} < required()
    assert required().isdisjoint({"torchvision", "accelerate", "pyarrow", "pytest"})


@pytest.mark.parametrize("published", FOLDERS, ids=lambda one: one.profile)
def test_every_command_serves_the_published_folder(
    published: HubFolder, tmp_path: Path, scenes: Path
) -> None:
    write_hub_folder(published, tmp_path / "checkpoint")
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        f"extends: {published.profile}\nmodel: ./checkpoint\ndtype: float32\n"
        "generation: {max_new_tokens: 20, temperature: 0}\n"
    )
    image, question = str(scenes / "scene-0001.png"), "What is in the picture?"
    of = ("--profile", "mine.yaml")
    infer, batch, profiled, doctor, cost = run_plain(
        tmp_path,
        ("infer", image, question, *of, "--json"),
        ("batch", str(scenes), question, *of, "-o", "r.jsonl", "--json"),
        ("profile", image, question, *of, "--runs", "1", "--min-time", "0", "--new-tokens", "18"),
        ("doctor", *of),
        ("show", "mine.yaml", "--cost"),
    )
    for done in (infer, batch, profiled, doctor, cost):
        assert done.code == 0, done.err + done.out
    answer = json.loads(infer.out)
    if "thinking" in published.profile and "</think>" not in answer["text"]:
        opened = published.template.endswith("<think>\\n' }}{%- endif -%}")
        assert opened == (not answer["answer"])  # thinking that was cut answers nothing
    assert answer["vision_tokens"] > 0 and answer["withdrawal"] is not None
    records = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [record["status"] for record in records] == ["ok", "ok"]
    assert records[0]["text"] == answer["text"]
