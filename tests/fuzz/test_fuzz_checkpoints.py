"""Checkpoint folders with damaged files and chat templates of all kinds, by the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from broken import write_checkpoint
from fuzzing import altered, damaged, fuzz, run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mvw_cli.errors import ExitCode

FILES = (
    *("config.json", "generation_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a user would have it, and a picture beside it."""
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "m")
    assert {file.name for file in folder.iterdir()} == set(FILES)
    Image.new("RGB", (40, 30), "red").save(folder.parent / "a.png")
    return folder


def ask(folder: Path, *more: str) -> Any:
    """Ask the model of a folder."""
    picture = str(folder.parent / "a.png")
    common = ("--model", str(folder), "--max-new-tokens", "2", "--device", "cpu")
    return run("infer", picture, "w1 w2", *common, *more)


def try_all(folder: Path) -> None:
    """Run what reads a checkpoint."""
    ask(folder)
    run("show", "--cost", "--set", f"model={folder}")
    run("doctor", "--set", f"model={folder}")


_DOCUMENTS = [name for name in FILES if name.endswith(".json")]


@fuzz(10)
@given(data=st.data(), name=st.sampled_from((*_DOCUMENTS, "config.json", "config.json")))
def test_a_document_with_other_values_is_served_or_refused(
    data: st.DataObject, name: str, whole: Path
) -> None:
    file = whole / name
    before = file.read_bytes()
    try:
        changed = data.draw(altered(json.loads(before), large=1000))
        file.write_text(json.dumps(changed))
        try_all(whole)
    finally:
        file.write_bytes(before)


@fuzz(10)
@given(data=st.data(), name=st.sampled_from(FILES))
def test_a_damaged_file_is_read_or_refused(data: st.DataObject, name: str, whole: Path) -> None:
    file = whole / name
    before = file.read_bytes()
    try:
        head = data.draw(damaged(before[:4000], 2))
        file.write_bytes(data.draw(st.sampled_from((head + before[4000:], head[:100], b""))))
        try_all(whole)
    finally:
        file.write_bytes(before)


TEMPLATES: dict[str, tuple[str, int, str]] = {
    "a syntax error": ("{% for x in %}", ExitCode.MODEL, "template"),
    "an unknown filter": ("{{ messages | no_such_filter }}", ExitCode.MODEL, "template"),
    "an unknown tag": ("{% nope %}", ExitCode.MODEL, "template"),
    "an unknown function": ("{{ nope() }}", ExitCode.MODEL, "template"),
    "an attribute of nothing": ("{{ messages[9].content.x.y }}", ExitCode.MODEL, "template"),
    "a refusal": ("{{ raise_exception('no pictures') }}", ExitCode.MODEL, "no pictures"),
    "a long loop": ("{% for i in range(10**9) %}x{% endfor %}", ExitCode.MODEL, "template"),
    "a wrong type": ("{{ messages + 1 }}", ExitCode.MODEL, "template"),
    "a division by zero": ("{{ 1 // 0 }}", ExitCode.MODEL, "template"),
    "a missing key": ("{{ messages[0]['contents'] }}", ExitCode.MODEL, "image"),
    "code": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", ExitCode.MODEL, "template"),
    "a recursion": ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", ExitCode.MODEL, "template"),
    "an include": ("{% include 'other' %}", ExitCode.MODEL, "template"),
    "no image": ("{{ messages[0]['content'][-1]['text'] }}", ExitCode.MODEL, "no place for images"),
    "two places for one image": ("<image> <image> w1", ExitCode.MODEL, ""),
    "halves of characters": ("<image> {{ '\\ud800' }}", ExitCode.MODEL, ""),
    "a text that is read as a list": (
        "{% for m in messages %}{{ m['content'] + 'x' }}{% endfor %}",
        *(ExitCode.MODEL, "template"),
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_fails_is_named(name: str, whole: Path, tmp_path: Path) -> None:
    template, code, said = TEMPLATES[name]
    folder = tmp_path / "m"
    shutil.copytree(whole, folder)
    shutil.copy(whole.parent / "a.png", tmp_path)
    (folder / "chat_template.jinja").write_text(template)
    ran = ask(folder)
    assert ran.code == code and ran.out == "", ran
    assert said in ran.err


def test_the_whole_checkpoint_answers(whole: Path) -> None:
    assert ask(whole).code == ExitCode.OK
