"""Hints name the command that was typed, and what they name is a command."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

import pytest
from hints import parse_hint

from mvw_cli.cli import cli
from mvw_cli.cli.command_line import as_typed

ROOT = Path(__file__).parents[2]
TYPED = {
    "infer": ["infer", "scene.png", "What is there?", "--model", "org/name", "--m", "4"],
    "batch": ["-q", "batch", "./images", "What is there?", "--model=org/name", "-o", "out.jsonl"],
    "profile": ["profile", "--images", "dir", "--set", "dtype=float32", "--m", "4,8"],
    "calibrate": ["calibrate", "vtw", "--dtype", "float32", "--limit", "3"],
}


def general_hints() -> list[str]:
    """Hints of the code that name a command in general; what is put in at run time is 1."""
    found = set()
    for path in [*(ROOT / "mvw_cli").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "hint":
                parts = node.value.values if isinstance(node.value, ast.JoinedStr) else [node.value]
                text = "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "1" for part in parts
                )
                if text.startswith("mvw infer IMAGE QUESTION"):
                    found.add(text)
    assert len(found) > 5
    return sorted(found)


@pytest.mark.parametrize("typed", TYPED)
@pytest.mark.parametrize("hint", general_hints())
def test_a_general_hint_becomes_the_typed_command(hint: str, typed: str) -> None:
    command = as_typed(hint, TYPED[typed], cli)
    parse_hint(command)
    if command == hint:
        assert {"--explain", "--random-weights"} & set(shlex.split(hint)), "others take the rest"
    else:
        assert typed in shlex.split(command)[1:3] and "IMAGE" not in shlex.split(command)


@pytest.mark.parametrize(
    ("typed", "hint", "expected"),
    [
        ("infer a.png w", "--set dtype=bfloat16", "infer a.png w --dtype bfloat16"),
        ("infer a w --dtype float32 -v", "--dtype bfloat16", "infer a w -v --dtype bfloat16"),
        ("batch d w --dtype=float32", "--set dtype=bfloat16", "batch d w --dtype bfloat16"),
        ("batch d w --set dtype=float32", "--dtype bfloat16", "batch d w --dtype bfloat16"),
        ("show --cost --set dtype=float32", "--dtype bfloat16", "show --cost --set dtype=bfloat16"),
        ("infer -v -- -a.png w", "--set device=null", "infer -v --set device=null -- -a.png w"),
        ("profile --batch 4", "--random-weights", "profile --batch 4 --random-weights"),
    ],
)
def test_an_option_takes_the_place_of_what_sets_the_same(
    typed: str, hint: str, expected: str
) -> None:
    written = as_typed(f"mvw infer IMAGE QUESTION {hint}", typed.split(), cli)
    assert written == f"mvw {expected}"


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("infer a.png w", "mvw list profiles"),
        ("doctor", "mvw infer IMAGE QUESTION --allow-pickle"),
        ("unheard-of", "mvw infer IMAGE QUESTION --dtype bfloat16"),
        ("", "mvw infer IMAGE QUESTION --dtype bfloat16"),
    ],
)
def test_what_the_typed_command_does_not_take_stays_as_it_is(typed: str, hint: str) -> None:
    assert as_typed(hint, typed.split(), cli) == hint


def test_what_is_installed_first_stays_in_front() -> None:
    hint = "pip install 'mvw[quantization]' && mvw infer IMAGE QUESTION --set quantization=8bit"
    written = as_typed(hint, ["batch", "d", "w"], cli)
    assert written == "pip install 'mvw[quantization]' && mvw batch d w --quantization 8bit"
