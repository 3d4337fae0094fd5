"""Golden messages: what a wrong profile, flag or variable gets, word for word."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hints import parse_hint

from mvw_cli.errors import MvwError, PluginProblem, UsageProblem
from mvw_cli.profiles.resolution import parse_set, resolve
from mvw_cli.profiles.schema import Profile
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


SCHEMA = "mvw show --schema"
FILES: dict[str, tuple[str, str] | Message] = {
    "adapter: shapes\n\nwitdrawal:\n  m: 3\n": (
        "x.yaml, line 3: unknown key `witdrawal`",
        "did you mean `withdrawal`?",
    ),
    "adapter: shapes\ngeneration:\n  temprature: 1\n": (
        "x.yaml, line 3: unknown key `generation.temprature`",
        "did you mean `generation.temperature`?",
    ),
    "adapter: shapes\nmax_new_tokens: 3\n": (
        "x.yaml, line 2: unknown key `max_new_tokens`",
        "did you mean `generation.max_new_tokens`?",
    ),
    "adapter: shapes\nprompt: {zzz: 3}\n": (
        "x.yaml, line 2: unknown key `prompt.zzz`",
        "known here: system, template, question",
    ),
    "adapter: shapes\nwithdrawal:\n  policy: mvw\n  untill: X\n": (
        "x.yaml, line 4: policy `mvw` has no field `untill`",
        "did you mean `until`?",
    ),
    "adapter: shapes\nwithdrawal: {policy: none, m: 3}\n": (
        "x.yaml, line 2: policy `none` has no field `m`",
        "`none` has no fields",
    ),
    "adapter: shapes\ngeneration:\n  temperature: hot\n": (
        'x.yaml, line 3: `generation.temperature` must be a valid number, not "hot"',
        "0 is greedy; null takes the model's generation config.",
    ),
    'adapter: shapes\ngeneration: {max_new_tokens: "16"}\n': (
        'x.yaml, line 2: `generation.max_new_tokens` must be a valid integer, not "16"',
        "Generate at most this many tokens.",
    ),
    "adapter: shapes\ngeneration: {top_p: 1.5}\n": (
        "x.yaml, line 2: `generation.top_p` must be less than or equal to 1, not 1.5",
        "Sample from the likeliest tokens that have this probability together; null: as the model "
        "says.",
    ),
    "adapter: shapes\ngeneration: {temperature: .nan}\n": (
        "x.yaml, line 2: `generation.temperature` must be a finite number, not NaN",
        "0 is greedy; null takes the model's generation config.",
    ),
    "adapter: shapes\ngeneration: {stop: [a, 3]}\n": (
        "x.yaml, line 2: `generation.stop[1]` must be a valid string, not 3",
        "Stop once one of these has been written; it stays in the text.",
    ),
    "adapter: shapes\nimages: {max_pixels: true}\n": (
        "x.yaml, line 2: `images.max_pixels` must be a valid integer, not true",
        "Larger images are scaled down to at most this many pixels; null: never.",
    ),
    "adapter: shapes\ngeneration: 5\n": (
        "x.yaml, line 2: `generation` must be an object, not 5",
        "its keys: max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed, stop",
    ),
    "adapter: shapes\ndtype: fp16\n": (
        'x.yaml, line 2: `dtype` must be auto, float32, bfloat16 or float16, not "fp16"',
        "Type of the weights; auto takes the checkpoint's own.",
    ),
    "adapter: shapes\ndevice: gpu\n": (
        'x.yaml, line 2: `device` must be auto, cpu, mps, cuda or cuda:N, not "gpu"',
        "auto, cpu, mps, cuda or cuda:N; auto takes an accelerator where there is one.",
    ),
    "adapter: shapes\nprompt:\n  template: Answer!\n": (
        "x.yaml, line 3: `prompt.template` must contain {question}, where the question goes, "
        'not "Answer!"',
        "Text sent with the images; {question} stands for the question.",
    ),
    "adapter: null\n": (
        "x.yaml, line 1: `adapter` must be a valid string, not null",
        "Model family; `mvw list adapters` shows them. Without it: hf where a model is named, "
        "else shapes.",
    ),
    "adapter: shapes\nwithdrawal:\n  m: 0\n": (
        "x.yaml, line 3: withdrawal: m must be 1 or more: the first token comes out of the prefill",
        "fields of policy `mvw`: m, until, min, max",
    ),
    "adapter: shapes\nwithdrawal:\n  policy: mvw\n": (
        "x.yaml, line 3: withdrawal: give m (a number of tokens), until (a tag), or both",
        "fields of policy `mvw`: m, until, min, max",
    ),
    "adapter: shapes\nwithdrawal: {m: many}\n": (
        'x.yaml, line 2: `withdrawal.m` must be a valid integer, not "many"',
        "Withdraw after this many generated tokens; 1 or more.",
    ),
    "adapter: shapes\nwithdrawal: {policy: mwv}\n": (
        "x.yaml, line 2: there is no policy `mwv`",
        "did you mean `mvw`?",
        "mvw list policies",
    ),
    "\n\nadapter: shaps\n": (
        "x.yaml, line 3: there is no adapter `shaps`",
        "did you mean `shapes`?",
        "mvw list adapters",
    ),
    "adapter: shapes\nadapter: hf\n": (
        "x.yaml, line 2: key `adapter` is given twice (first in line 1)",
        "the line reads: adapter: hf",
    ),
    "adapter: shapes\nmodel: [a\ndtype: auto\n": (
        "x.yaml, line 3: expected ',' or ']', but got ':'",
        "the line reads: dtype: auto",
    ),
    "adapter: !!python/name:os.system\n": (
        "x.yaml, line 1: tag tag:yaml.org,2002:python/name:os.system is not allowed",
        "the line reads: adapter: !!python/name:os.system",
    ),
    "- adapter\n": (
        "x.yaml: not a mapping of keys to values",
        "a profile has lines like `model: ORG/NAME`",
    ),
}


@pytest.mark.parametrize("text", FILES)
def test_a_wrong_file(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(text, encoding="utf-8")
    assert complaint("x.yaml", {}) == (*FILES[text], SCHEMA)[:3]


def test_the_first_wrong_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("adapter: shapes\nzzz: 1\ndtype: fp16\naaa: 1\n")
    assert complaint("x.yaml", {})[0] == "x.yaml, line 2: unknown key `zzz`"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't read profile x.yaml"),
        (b"adapter: sh\xff\n", "x.yaml, line 1: not UTF-8 text"),
        (b"# " + b"x" * 300_000, "x.yaml: too large for a profile"),
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


FLAGS: list[tuple[dict[str, object], tuple[str, str]]] = [
    (
        {"generation.temperature": -1.0},
        (
            "--temperature: `generation.temperature` must be greater than or equal to 0, not -1.0",
            "0 is greedy; null takes the model's generation config.",
        ),
    ),
    (
        dict(parse_set(["generation.temprature=1"])),
        (
            "--set generation.temprature: unknown key `generation.temprature`",
            "did you mean `generation.temperature`?",
        ),
    ),
    (
        dict(parse_set(["generation=1"])),
        (
            "--set generation: `generation` is a group of keys",
            "its keys: generation.max_new_tokens, generation.temperature, generation.top_p, "
            "generation.top_k, generation.repetition_penalty, generation.seed, generation.stop",
        ),
    ),
    (
        dict(parse_set(["extends=hf"])),
        (
            "--set extends: unknown key `extends`",
            f"known here: {', '.join(key for key in Profile.model_fields if key != 'extends')}",
        ),
    ),
    (
        {"withdrawal.m": 0},
        (
            "--m: withdrawal: m must be 1 or more: the first token comes out of the prefill",
            "fields of policy `mvw`: m, until, min, max",
        ),
    ),
]


@pytest.mark.parametrize(("flags", "expected"), FLAGS)
def test_a_wrong_flag(flags: dict[str, object], expected: tuple[str, str]) -> None:
    assert complaint("shapes", flags) == (*expected, SCHEMA)


def test_bytes_that_are_no_text() -> None:
    for pair in ("device=\udcff", "withdrawal.until=\udcff", "withdrawal.\udcff=1"):
        assert "not UTF-8 text" in complaint("shapes", dict(parse_set([pair])))[0]


def test_set_without_a_value() -> None:
    with pytest.raises(UsageProblem, match="--set device: not KEY=VALUE"):
        parse_set(["device"])


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "MVW_MODL",
            "org/name",
            ("there is no variable MVW_MODL", "did you mean `MVW_MODEL`?", "unset MVW_MODL"),
        ),
        (
            "MVW_WITHDRAWAL_UNTIL",
            "</X>",
            (
                "there is no variable MVW_WITHDRAWAL_UNTIL",
                "a key of a profile is set by --set 'withdrawal.until=</X>'",
                "unset MVW_WITHDRAWAL_UNTIL",
            ),
        ),
        (
            "MVW_DEVICE",
            "cpu",
            (
                "there is no variable MVW_DEVICE",
                "a key of a profile is set by --set device=cpu",
                "unset MVW_DEVICE",
            ),
        ),
        (
            "MVW_ZZZ",
            "1",
            (
                "there is no variable MVW_ZZZ",
                "keys of a profile are set by --set KEY=VALUE",
                "unset MVW_ZZZ",
            ),
        ),
        (
            "MVW_PROFILE",
            "shaps",
            ("there is no profile `shaps`", "did you mean `shapes`?", "mvw list profiles"),
        ),
    ],
)
def test_a_wrong_variable(name: str, text: str, expected: Message) -> None:
    assert complaint(None, {}, **{name: text}) == expected


def test_an_unknown_profile() -> None:
    packaged = sorted(path.stem for path in packaged_folder().glob("*.yaml"))
    assert complaint("zzzzzz", {}) == (
        "there is no profile `zzzzzz`",
        f"known: {', '.join(packaged)}; a file is named by its path, as in ./zzzzzz.yaml",
        "mvw list profiles",
    )
