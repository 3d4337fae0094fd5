"""What answers depend on, and how a difference is shown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from records import fingerprint as made_up

from mvw_cli import __version__
from mvw_cli.batch.store.fingerprint import (
    Fingerprint,
    describe_difference,
    fingerprint,
    folder_digest,
)
from mvw_cli.profiles.resolution import resolve


def of(name: str | None = None, *, random_weights: bool = False, **flags: object) -> Fingerprint:
    resolved = resolve(name, {key.replace("__", "."): value for key, value in flags.items()})
    return fingerprint(resolved, random_weights=random_weights)


def test_it_holds_what_answers_depend_on() -> None:
    taken = of(model="org/name", withdrawal__m=16)
    assert taken.mvw == __version__
    assert (taken.profile["adapter"], taken.profile["model"]) == ("hf", "org/name")
    assert taken.profile["withdrawal.m"] == 16
    assert taken.adapter_version == taken.policy_version == f"mvw {__version__}"
    assert (taken.revision, taken.settled) == (None, False)


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ({"withdrawal__m": 32}, "withdrawal.m"),
        ({"dtype": "float16"}, "dtype"),
        ({"generation__seed": 1}, "generation.seed"),
        ({"generation__temperature": 0.5}, "generation.temperature"),
        ({"generation__max_new_tokens": 7}, "generation.max_new_tokens"),
        ({"prompt__template": "Q: {question}"}, "prompt.template"),
        ({"generation__stop": ["x"]}, "generation.stop"),
        ({"prompt__system": "Be brief."}, "prompt.system"),
        ({"images__max_pixels": 100}, "images.max_pixels"),
        ({"cross_attention": "mlp"}, "cross_attention"),
        ({"model": "org/other"}, "model"),
        ({"random_weights": True}, "random_weights"),
        # Where it runs changes nothing.
        ({"device": "cpu"}, None),
        ({"attention": "eager"}, None),
        ({"device_map": "auto"}, None),
        ({"description": "x"}, None),
        ({"images__max_decoded_pixels": 10}, None),
    ],
)
def test_a_setting_that_changes_answers_changes_it(flags: dict[str, Any], key: str | None) -> None:
    base: dict[str, Any] = {"model": "org/name", "withdrawal__m": 16}
    one, other = of(**base), of(**{**base, **flags})
    assert [name for name, *_ in one.difference(other)] == ([] if key is None else [key])
    assert (one.short == other.short) == (key is None)


def test_the_loaded_revision_counts_once_it_is_known() -> None:
    before, after = of(model="org/name"), of(model="org/name", revision="main")
    assert before.difference(after) == []
    known = before.with_revision("c0ffee")
    assert (known.revision, known.settled) == ("c0ffee", True)
    assert before.difference(known) == known.difference(before) == []
    assert known.short != before.short
    other = after.with_revision("decaf")
    assert known.difference(other) == [("revision", "c0ffee", "decaf")]
    nothing = before.with_revision(None)
    assert nothing.difference(known) == [("revision", None, "c0ffee")]


def test_it_comes_back_from_json() -> None:
    one = of(model="org/name", generation__stop=["a", "b"]).with_revision("c0ffee")
    again = Fingerprint(**json.loads(json.dumps(one.to_dict())))
    assert again == one
    assert again.short == one.short


def test_the_hash_is_short_and_the_same_everywhere() -> None:
    assert made_up().short == "63e7fe0a4a88"
    assert made_up(32).short != made_up().short


def test_a_difference_is_shown_key_by_key() -> None:
    one, other = made_up(16), made_up(32, revision="decaf")
    assert describe_difference(one.difference(other)) == (
        "withdrawal.m: 16 before, 32 now; revision: c0ffee before, decaf now"
    )
    assert describe_difference([("a", None, "x")] * 5) == (
        "a: null before, x now; a: null before, x now; a: null before, x now; and 2 more"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(300_000))
    return model


def change(start: int) -> Callable[[Path], object]:
    def write(model: Path) -> None:
        with (model / "model.safetensors").open("r+b") as file:
            file.seek(start)
            file.write(b"x")

    return write


@pytest.mark.parametrize(
    "act",
    [
        lambda model: (model / "config.json").write_text('{"a": 1}'),
        lambda model: (model / "generation_config.json").write_text("{}"),
        lambda model: (model / "tokenizer.json").write_text("[]"),
        lambda model: (model / "chat_template.jinja").write_text("x"),
        lambda model: os.truncate(model / "model.safetensors", 299_999),
        lambda model: (model / "model.safetensors").rename(model / "other.safetensors"),
        change(0),
        change(150_000),
        change(299_999),
    ],
)
def test_a_folder_is_known_by_its_files(folder: Path, act: Callable[[Path], object]) -> None:
    before = folder_digest(folder)
    assert before.startswith("sha256:")
    act(folder)
    assert folder_digest(folder) != before


def test_a_folder_may_move_and_hold_results(folder: Path) -> None:
    one = of(model=str(folder))
    (folder / "results.jsonl").write_text("x")
    (folder / "README.md").write_text("x")
    elsewhere = folder.parent / "deeper" / "model"
    elsewhere.parent.mkdir()
    folder.rename(elsewhere)
    assert of(model=str(elsewhere)) == one
    assert one.profile["model"] == "model"
    assert one.revision == folder_digest(elsewhere)
    assert one.with_revision(None).revision == one.revision
