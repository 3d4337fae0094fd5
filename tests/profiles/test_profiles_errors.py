"""What a wrong profile, flag or variable gets: its place, what is wrong and what was meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hints import parse_hint

from mvw_cli.errors import MvwError, PluginProblem, UsageProblem
from mvw_cli.profiles.resolution import parse_set, resolve
from mvw_cli.profiles.store import packaged_folder

Message = tuple[str, str | None, str | None]


def complaint(name: str | None, flags: dict[str, object], **variables: str) -> Message:
    with pytest.raises(MvwError) as caught:
        resolve(name, flags, {**os.environ, **variables})
    error = caught.value
    assert isinstance(error, UsageProblem | PluginProblem)
    assert error.hint is not None
    parse_hint(error.hint)
    return error.message, error.cause, error.hint


FILES: list[tuple[str, str, str]] = [
    ("\nwitdrawal:\n  m: 3\n", "line 2: unknown key `witdrawal`", "did you mean `withdrawal`?"),
    (
        "generation:\n  temprature: 1\n",
        "line 2: unknown key `generation.temprature`",
        "did you mean `generation.temperature`?",
    ),
    (
        "max_new_tokens: 3\n",
        "line 1: unknown key `max_new_tokens`",
        "did you mean `generation.max_new_tokens`?",
    ),
    (
        "prompt: {zzz: 3}\n",
        "line 1: unknown key `prompt.zzz`",
        "known here: system, template, question",
    ),
    (
        "withdrawal:\n  policy: mvw\n  untill: X\n",
        "line 3: policy `mvw` has no field `untill`",
        "did you mean `until`?",
    ),
    (
        "withdrawal: {policy: none, m: 3}\n",
        "line 1: policy `none` has no field `m`",
        "`none` has no fields",
    ),
    (
        "generation:\n  temperature: hot\n",
        'line 2: `generation.temperature`: Input should be a valid number, not "hot"',
        "0 is greedy; null takes the model's generation config.",
    ),
    (
        'generation: {max_new_tokens: "16"}\n',
        "line 1: `generation.max_new_tokens`: Input should be a valid integer, not",
        "Generate at most",
    ),
    ("generation: {top_p: 1.5}\n", "line 1: `generation.top_p`: Input should be less", "Sample"),
    (
        "generation: {temperature: .nan}\n",
        "line 1: `generation.temperature`: Input should be a f",
        "",
    ),
    ("generation: {stop: [a, 3]}\n", "line 1: `generation.stop[1]`: Input should be a va", "Stop"),
    ("images: {max_pixels: true}\n", "line 1: `images.max_pixels`: Input should be", "Larger"),
    ("generation: 5\n", "line 1: `generation`: Input should be an object, not 5", "How tokens are"),
    ("dtype: fp16\n", "line 1: `dtype`: Input should be 'auto', 'float32'", "Type of the weights"),
    ("device: gpu\n", "line 1: `device`: String should match pattern", "auto, cpu, mps, cuda"),
    ("prompt:\n  template: Hi\n", "line 2: `prompt.template`: String should match", "Text sent"),
    ("adapter: null\n", "line 1: `adapter`: Input should be a valid string", "Model family"),
    (
        "withdrawal:\n  m: 0\n",
        "line 2: withdrawal: policy `mvw`: m must be 1 or more",
        "its fields: m, until, min, max",
    ),
    ("withdrawal:\n  policy: mvw\n", "line 2: withdrawal: policy `mvw`: give m", "its fields: m"),
    ("withdrawal: {m: many}\n", "line 1: `withdrawal.m`: Input should be a v", "Withdraw after"),
    ("withdrawal: {policy: mwv}\n", "line 1: there is no policy `mwv`", "did you mean `mvw`?"),
    ("\n\nadapter: shaps\n", "line 3: there is no adapter `shaps`", "did you mean `shapes`?"),
    ("model: a\nmodel: b\n", "line 2: key `model` is given twice (fi", "the line reads: model: b"),
    ("model: [a\ndtype: auto\n", "line 2: expected ',' or ']', but", "the line reads: dtype: auto"),
    ("model: !!python/name:os.system\n", "line 1: tag tag:yaml.org,2002:python", "the line reads:"),
]


@pytest.mark.parametrize(("text", "message", "cause"), FILES)
def test_a_wrong_file(
    text: str, message: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(text, encoding="utf-8")
    found = complaint("x.yaml", {})
    assert found[0].startswith(f"x.yaml, {message}")
    assert found[1] and found[1].startswith(cause)


def test_the_first_wrong_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("adapter: shapes\nzzz: 1\ndtype: fp16\naaa: 1\n")
    assert complaint("x.yaml", {})[0] == "x.yaml, line 2: unknown key `zzz`"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't read profile x.yaml"),
        (b"adapter: sh\xff\n", "x.yaml: not UTF-8 text"),
        (b"- adapter\n", "x.yaml: not a mapping of keys to values"),
    ],
)
def test_an_unreadable_file(
    content: bytes | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("x.yaml").write_bytes(content)
    assert complaint("x.yaml", {})[0] == message


def test_a_folder_and_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.yaml").mkdir()
    assert complaint("./folder.yaml", {})[:2] == (
        "can't read profile folder.yaml",
        "Is a directory",
    )
    assert complaint("shapes.yaml", {})[1] == (
        "No such file or directory; "
        "a profile that is not a file is named without its ending: shapes"
    )


@pytest.mark.parametrize(
    ("flags", "message", "cause"),
    [
        (
            {"generation.temperature": -1.0},
            "--temperature: `generation.temperature`: Input",
            "0 is",
        ),
        (
            dict(parse_set(["generation.temprature=1"])),
            "--set generation.temprature: unknown key `generation.temprature`",
            "did you mean `generation.temperature`?",
        ),
        (
            dict(parse_set(["generation=1"])),
            "--set generation: unknown key `generation`",
            "known here: max_new_tokens, temperature, top_p",
        ),
        (
            dict(parse_set(["extends=hf"])),
            "--set extends: unknown key `extends`",
            "known here: adapter, model",
        ),
        (
            {"withdrawal.m": 0},
            "--m: withdrawal: policy `mvw`: m must be 1 or more",
            "its fields: m",
        ),
    ],
)
def test_a_wrong_flag(flags: dict[str, object], message: str, cause: str) -> None:
    found = complaint("shapes", flags)
    assert found[0].startswith(message)
    assert found[1] and found[1].startswith(cause)


def test_bytes_that_are_no_text() -> None:
    for pair in ("device=\udcff", "withdrawal.until=\udcff"):
        assert "is not UTF-8" in complaint("shapes", dict(parse_set([pair])))[0]


def test_set_without_a_value() -> None:
    with pytest.raises(UsageProblem, match="--set device: not KEY=VALUE"):
        parse_set(["device"])


def test_a_wrong_variable() -> None:
    message, cause, hint = complaint(None, {}, MVW_MODL="org/name")
    assert (message, hint) == ("there is no variable MVW_MODL", "unset MVW_MODL")
    assert cause and "MVW_MODEL" in cause
    assert complaint(None, {}, MVW_PROFILE="shaps") == (
        "there is no profile `shaps`",
        "did you mean `shapes`?",
        "mvw list profiles",
    )


def test_an_unknown_profile() -> None:
    packaged = sorted(path.stem for path in packaged_folder().glob("*.yaml"))
    assert complaint("zzzzzz", {}) == (
        "there is no profile `zzzzzz`",
        f"known: {', '.join(packaged)}; a file is named by its path, as in ./zzzzzz.yaml",
        "mvw list profiles",
    )
