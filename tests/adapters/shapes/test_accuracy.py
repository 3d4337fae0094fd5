"""The embedded model answers questions about scenes it has never seen, through the engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mvw_shapes.model import Shapes
from mvw_shapes.samples import write_samples

from mvw_cli.adapter import ModelSpec
from mvw_cli.engine import Engine, Finished, GenerationSettings, Request
from mvw_cli.images.reading import open_image
from mvw_cli.policies.mvw import Mvw
from mvw_cli.policies.none import NoWithdrawal
from mvw_cli.policy import WithdrawalPolicy

SCENES = 100


def right_answers(folder: Path, policy: WithdrawalPolicy, kind: str | None = None) -> float:
    """Share of right answers, of all questions or of one kind."""
    adapter = Shapes()
    loaded = adapter.load(ModelSpec(device="cpu"))
    lines = (folder / "questions.jsonl").read_text().splitlines()
    records = {
        record["id"]: record
        for record in map(json.loads, lines)
        if kind is None or record["kind"] == kind
    }

    def requests() -> Iterator[Request]:
        for name, record in records.items():
            image = open_image(folder / record["image"]).image
            inputs = adapter.encode(loaded, [image], record["question"])
            layout = adapter.vision(loaded, inputs)
            yield Request(name, inputs, layout, policy, GenerationSettings(max_new_tokens=256))

    answers = {
        event.request: adapter.parse(event.text).answer
        for event in Engine(loaded, slots=20).run(requests())
        if isinstance(event, Finished)
    }
    assert answers.keys() == records.keys()
    return sum(answers[name] == records[name]["answer"] for name in records) / len(records)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_samples(folder, SCENES, seed=41)
    return folder


def test_full_vision(scenes: Path) -> None:
    assert right_answers(scenes, NoWithdrawal()) >= 0.95


def test_the_packaged_profiles_withdrawal(scenes: Path) -> None:
    assert right_answers(scenes, Mvw(until="</CAPTION>")) >= 0.95


@pytest.mark.parametrize("policy", [NoWithdrawal(), Mvw(until="</CAPTION>")], ids=str)
def test_counting(scenes: Path, policy: WithdrawalPolicy) -> None:
    assert right_answers(scenes, policy, kind="count") >= 0.95


def test_without_time_to_look_it_can_only_guess(scenes: Path) -> None:
    """The answers come from the image: with m = 1 most counts are wrong."""
    assert right_answers(scenes, Mvw(m=1), kind="count") <= 0.6
