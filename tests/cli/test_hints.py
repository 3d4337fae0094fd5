"""Hints name the command that was typed, and what they name is a command."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hints import parse_hint

from mvw_cli.cli import cli
from mvw_cli.cli.command_line import as_typed
from mvw_cli.images.problems import _KNOWN

ROOT = Path(__file__).parents[2]
TYPED = {
    "infer": ["infer", "scene.png", "What is there?", "--model", "org/name", "--m", "4"],
    "batch": ["-q", "batch", "./images", "What is there?", "--model=org/name", "-o", "out.jsonl"],
    "profile": ["profile", "--images", "dir", "--set", "dtype=float32", "--m", "4,8"],
    "calibrate": ["calibrate", "vtw", "--dtype", "float32", "--limit", "3"],
}


PROGRAMS = {
    *("mvw", "pip", "hf", "unset", "ulimit", "git", "python", "chmod", "mkdir", "curl"),
    *(
        "ls",
        "cat",
        "cd",
        "file",
        "head",
        "sed",
        "df",
        "fuser",
        "ffmpeg",
        "pdftoppm",
        "rsvg-convert",
    ),
}
"""What hints may begin with. Those that write name a file that is not there (`free_name`)."""
HARM = re.compile(
    r"--overwrite|--force(?!-reinstall|-download)|\brm\b|/dev/|MAX_IMAGE_PIXELS|[<>]|\|(?! cut -c)"
)


def texts_of(node: ast.expr) -> Iterator[str]:
    """The texts that an expression may be; what is put in at run time is 1."""
    match node:
        case ast.Constant(str(text)):
            yield text
        case ast.JoinedStr(parts):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else "1" for p in parts)
        case ast.IfExp():
            yield from texts_of(node.body)
            yield from texts_of(node.orelse)
        case ast.BoolOp():
            for part in node.values:
                yield from texts_of(part)
        case ast.Call(ast.Attribute(ast.Name("shlex"), "join"), [ast.List(words)]):
            yield " ".join(next(texts_of(word), "1") for word in words)


def all_hints() -> Iterator[tuple[str, str]]:
    """Hints of the code with the file that they are in: arguments and variables of that name."""
    for path in [*(ROOT / "mvw_cli").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            pairs: list[tuple[ast.expr, ast.expr]] = []
            if isinstance(node, ast.keyword) and node.arg == "hint":
                pairs = [(ast.Name("hint"), node.value)]
            elif isinstance(node, ast.Assign):
                to, value = node.targets[0], node.value
                both = isinstance(to, ast.Tuple) and isinstance(value, ast.Tuple)
                pairs = list(zip(to.elts, value.elts, strict=True)) if both else [(to, value)]
            for to, value in pairs:
                if getattr(to, "id", getattr(to, "attr", "")) == "hint":
                    yield from ((path.name, text) for text in texts_of(value) if text)


def general_hints() -> list[str]:
    """Hints of the code that name a command in general."""
    found = {text for _, text in all_hints() if text.startswith("mvw infer IMAGE QUESTION")}
    assert len(found) > 5
    return sorted(found)


def test_no_hint_destroys_anything() -> None:
    """What is written on the way to a hint is tried in `test_inputs_kept.py`."""
    hints = list(all_hints())
    assert len(hints) > 80
    for file, text in hints:
        words = shlex.split(text)
        assert words[0] in PROGRAMS or words[0].startswith("1"), (file, text)
        assert not HARM.search(text), (file, text)
        # Whole ones are parsed here, the others where they are raised.
        general = "infer IMAGE QUESTION" in text or text.endswith(" ")
        if words[0] == "mvw" and "1" not in text and not general:
            parse_hint(text)


def test_what_is_put_into_hints_about_other_kinds_of_files() -> None:
    for _, _, command in _KNOWN:
        assert shlex.split(command)[0] in PROGRAMS and not HARM.search(command)
        assert ("{name}" in command) == ("{free}" in command)


@pytest.mark.parametrize("typed", TYPED)
@pytest.mark.parametrize("hint", general_hints())
def test_a_general_hint_becomes_the_typed_command(hint: str, typed: str) -> None:
    command = as_typed(hint, TYPED[typed], cli)
    parse_hint(command)
    if shlex.split(command)[1:3] == ["infer", "IMAGE"]:
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
    ("typed", "kept"),
    [
        ("doctor --set model=./x --profile p.yaml --json", "--set model=./x --profile p.yaml"),
        ("show p.yaml --cost --set=model=./x", "--set=model=./x"),
    ],
)
def test_what_reads_no_weights_names_the_command_that_does(typed: str, kept: str) -> None:
    written = as_typed("mvw infer IMAGE QUESTION --allow-pickle", typed.split(), cli)
    assert written == f"mvw infer IMAGE QUESTION {kept} --allow-pickle"


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
