"""`mvw infer --explain`: the same answer, and a page about it; or three lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from explaining import data_of, weights_of
from hints import parse_hint
from processes import Ran

from mvw_cli.errors import ExitCode

Run = Callable[..., Ran]
QUESTION = "How many red circles are there?"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> str:
    from mvw_cli.plugins import load_adapter

    folder = tmp_path_factory.mktemp("scenes")
    load_adapter("shapes").samples(folder, 1, 0)
    return str(next(folder.glob("*.png")))


def refused(ran: Ran) -> list[str]:
    assert (ran.code, ran.out) == (ExitCode.USAGE, ""), ran.err
    lines = ran.err.splitlines()
    assert len(lines) == 3 and lines[2].startswith("Hint: "), ran.err
    if lines[2].startswith("Hint: mvw "):
        parse_hint(lines[2].removeprefix("Hint: "))
    return lines


def test_the_run_is_the_one_whose_answer_is_printed(mvw: Run, scene: str, tmp_path: Path) -> None:
    page = tmp_path / "looked.html"
    for options in (["--m", "8"], ["--temperature", "1.5", "--seed", "3"]):
        alone = mvw("infer", scene, QUESTION, *options, "--json")
        shown = mvw("infer", scene, QUESTION, *options, "--json", "--explain", str(page))
        assert (alone.code, shown.code) == (0, 0), shown.err
        before, after = json.loads(alone.out), json.loads(shown.out)
        for key in ("answer", "text", "finish_reason", "generated_tokens", "withdrawal", "memory"):
            assert before[key] == after[key], key
        data = data_of(page.read_text("utf-8"))
        assert "".join(token["text"] for token in data["tokens"]) == after["text"]
        assert len(data["tokens"]) == after["generated_tokens"]
        assert (data["question"], data["answer"]) == (QUESTION, after["answer"])
        assert data["settings"]["profile"] == "shapes"
        assert f"wrote {page}" in shown.err
    assert data["settings"]["generation.seed"] == 3


def test_the_page_marks_the_withdrawal_where_it_was(mvw: Run, scene: str, tmp_path: Path) -> None:
    page = tmp_path / "looked.html"
    ran = mvw("infer", scene, QUESTION, "--m", "8", "--explain", str(page))
    assert ran.out.strip() == data_of(page.read_text("utf-8"))["answer"]
    data = data_of(page.read_text("utf-8"))
    [mark] = data["marks"]
    assert (mark["step"], mark["kind"]) == (8, "withdrawn")
    assert mark["text"] in ran.err and "freed" in mark["text"]
    seeing = [token["row"] is not None for token in data["tokens"]]
    assert seeing == [True] * 8 + [False] * (len(seeing) - 8)
    assert len(data["patches"]) == data["vision_tokens"] == 144
    assert data["patches"][0] == pytest.approx([0, 0, 0, 1 / 12, 1 / 12], abs=1e-6)


def test_vision_that_leaves_in_the_prefill_or_comes_back_is_marked(
    mvw: Run, scene: str, tmp_path: Path
) -> None:
    page = tmp_path / "looked.html"

    def told(*policies: str) -> dict[str, Any]:
        options = [word for one in policies for word in ("--policy", one)]
        ran = mvw("infer", scene, QUESTION, *options, "--explain", str(page))
        assert ran.code == 0, ran.err
        return data_of(page.read_text("utf-8"))

    data = told("vtw:layer=2")
    assert (data["marks"][0]["step"], data["layers"]) == (0, [0, 1])
    assert "2 of 4 layers hold all 144 vision tokens, the last one 0" in data["marks"][0]["text"]
    data = told("mvw:m=4", "look-back:tag=</SUMMARY>,steps=3")
    kinds = [mark["kind"] for mark in data["marks"]]
    assert kinds[:3] == ["withdrawn", "restored", "withdrawn"]
    back, gone = (mark["step"] for mark in data["marks"][1:3])
    seeing = [token["row"] is not None for token in data["tokens"]]
    assert seeing[:4] == [True] * 4 and not any(seeing[4:back])
    assert all(seeing[back:gone]) and weights_of(data, back) is not None


def test_a_page_that_can_not_be_written_is_refused_before_the_model_is_loaded(
    mvw: Run, scene: str, tmp_path: Path
) -> None:
    lines = refused(mvw("infer", scene, QUESTION, "--explain", str(tmp_path / "no" / "p.html")))
    assert "there is no folder" in lines[1]
    lines = refused(mvw("infer", scene, QUESTION, "--explain", str(tmp_path)))
    assert "it is a folder" in lines[1]
    lines = refused(mvw("infer", scene, QUESTION, "--explain", scene))
    assert lines[0].endswith("is an input, and would be written over")
    assert "the answer goes there" in refused(mvw("infer", scene, QUESTION, "--explain", "-"))[1]
    same = str(tmp_path / "a.html")
    lines = refused(mvw("infer", scene, QUESTION, "--explain", same, "-o", same))
    assert "the answer goes there" in lines[1]
    assert os.listdir(tmp_path) == []


def test_an_answer_outlives_a_page_that_could_not_be_written(mvw: Run, scene: str) -> None:
    ran = mvw("infer", scene, QUESTION, "--explain", "/dev/full", "-q")
    assert ran.code != 0 and ran.out.strip()
    assert "Cannot write /dev/full" in ran.err and "the answer was delivered" in ran.err
