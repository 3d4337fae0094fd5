"""`mvw samples` writes true, unseen samples, the same for a seed, and replaces nothing unasked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from mvw_shapes import easy_vqa, samples_command
from mvw_shapes.easy_vqa import load_questions
from mvw_shapes.model import looks_like_scene
from mvw_shapes.questions import QUESTION_KINDS, recognise
from mvw_shapes.samples import write_easy_vqa, write_samples
from PIL import Image

from mvw_cli import MvwError, UsageProblem


def _records(listed: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in listed.read_text().splitlines()]


def test_samples_are_complete_and_of_this_world(tmp_path: Path) -> None:
    listed = write_samples(tmp_path / "new" / "folder", 40, 1)
    records = _records(listed)
    assert len(records) == 40 and len({record["id"] for record in records}) == 40
    assert {record["kind"] for record in records} == set(QUESTION_KINDS)
    for record in records:
        assert set(record) == {"id", "image", "question", "answer", "kind"}
        question = recognise(record["question"])
        assert question is not None and question.kind == record["kind"]
        with Image.open(listed.parent / record["image"]) as image:
            assert image.size == (336, 336) and looks_like_scene(image)


def test_a_seed_fixes_the_files(tmp_path: Path) -> None:
    def content(folder: str, seed: int) -> dict[str, bytes]:
        write_samples(tmp_path / folder, 3, seed)
        return {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}

    assert content("a", 1) == content("b", 1) != content("c", 2)
    assert set(content("d", 1)) == {"questions.jsonl", *(f"scene-000{n}.png" for n in (1, 2, 3))}


@pytest.mark.parametrize("name", ["questions.jsonl", "scene-0002.png"])
def test_existing_files_are_not_replaced_unasked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageProblem) as caught:
        write_samples(tmp_path, 2, 0)
    assert caught.value.hint == f"mvw samples {tmp_path / 'new'}"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
    write_samples(tmp_path, 2, 0, overwrite=True)
    assert (tmp_path / name).read_bytes() != b"mine"


def test_a_place_that_cannot_be_written_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MvwError) as caught:
        write_samples(tmp_path / "file" / "below", 1, 0)
    assert caught.value.cause and caught.value.hint


def test_the_command_writes_and_names_the_list(tmp_path: Path) -> None:
    result = CliRunner().invoke(samples_command, [str(tmp_path), "--count", "2", "--seed", "7"])
    assert result.exit_code == 0
    assert result.stdout.strip() == str(tmp_path / "questions.jsonl")
    assert len(_records(tmp_path / "questions.jsonl")) == 2
    assert CliRunner().invoke(samples_command, [str(tmp_path), "--count", "0"]).exit_code == 2


def test_easy_vqa_is_written_from_its_package(tmp_path: Path) -> None:
    asked = load_questions("test")
    listed = write_easy_vqa(tmp_path, 30, 0)
    records = _records(listed)
    assert len({record["id"] for record in records}) == len(records) == 30
    for record in records:
        assert set(record) == {"id", "image", "question", "answer", "kind"}
        text, answer, file = asked[int(record["id"].removeprefix("easy-"))]
        assert (record["question"], record["answer"]) == (text, answer)
        assert (tmp_path / record["image"]).read_bytes() == file.read_bytes()
    with pytest.raises(UsageProblem):
        write_easy_vqa(tmp_path, 1, 0)
    other = write_easy_vqa(tmp_path, 30, 1, overwrite=True)
    assert records != _records(other)


def test_easy_vqa_that_is_not_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(easy_vqa, "find_spec", lambda name: None)
    result = CliRunner().invoke(samples_command, [str(tmp_path / "x"), "--world", "easy-vqa"])
    assert isinstance(result.exception, UsageProblem)
    assert result.exception.hint == "pip install easy-vqa"
    assert not (tmp_path / "x").exists()
