"""Profiles, `--set`, variables and lines of policies, whatever is in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import damaged, fuzz, run, snapshot, told
from hypothesis import example, given
from hypothesis import strategies as st

from mvw_cli.plugins import load_plugins
from mvw_cli.profiles.resolution import parse_set, resolve
from mvw_cli.profiles.schema import fields
from mvw_cli.profiles.store import known_profiles

POLICIES = sorted(entry.info.name for entry in load_plugins().policies)
KEYS = (
    *fields(),
    *("prompt", "images", "withdrawal", "generation", "extend", "generation.x.y", "", "<<", "a b"),
    *(f"withdrawal.{key}" for key in ("m", "until", "layer", "ratio", "seed", "keep", "x", "")),
)
WRITTEN = (
    *(
        "null",
        "~",
        "true",
        "no",
        "0",
        "1",
        "16",
        "-1",
        "1e3",
        "1e999",
        ".nan",
        ".inf",
        "0x" + "f" * 40,
    ),
    *(
        "9" * 30,
        "9" * 5000,
        "0o7",
        "2026-11-28",
        "1:30",
        "'16'",
        '"16"',
        "text",
        "two words",
        "auto",
    ),
    *('"\\0"', '"\\ud800"', '"\\UFFFFFFFF"', '"\\x9b31m"', '"a\\nb"', "|\n  many\n  lines", "é"),
    *(
        "[]",
        "[1, 2]",
        "['', a]",
        "{}",
        "{a: 1}",
        "{policy: mvw}",
        "[{policy: mvw, m: 4}]",
        "[[{}]]",
    ),
    *(
        "&a [*a]",
        "*a",
        "!!python/object/apply:os.abort []",
        "!!binary aGk=",
        "!!int x",
        "!x y",
        "!",
    ),
    *(
        "!!set {a}",
        "!<tag:%zz> x",
        "? a",
        "- a\n- b",
        "{",
        "[",
        "]",
        "@x",
        "`x`",
        "%x",
        "a: b: c",
        '"',
    ),
    *("[" * 2000, "{a: " * 400 + "}" * 400, "- " * 900, "mvw", "mvw:m=4", "vtw:layer=1+mvw:m=2"),
    *(
        "./other.yaml",
        "shapes",
        "x.yaml",
        "~nobody/x.yaml",
        '"\\0.yaml"',
        "/",
        "hf",
        "cuda:99",
        "None",
    ),
    *("w" * 3000, "float16", "{question}", "8bit", "skip", "eager", "../", "a/b", "a/b/c", "-m"),
)
"""Values as they may be typed."""
values = st.sampled_from(WRITTEN)
_INDENT = "  "


@st.composite
def lines(draw: st.DrawFn) -> str:
    """A profile as a person may have typed it."""
    made = []
    for _ in range(draw(st.integers(0, 4))):
        section, _, key = draw(st.sampled_from(KEYS)).rpartition(".")
        written = draw(values).replace("\n", f"\n{_INDENT}")
        if section and draw(st.booleans()):
            made += [f"{section}:", f"{_INDENT}{key}: {written}"]
        else:
            made.append(f"{key}: {written}")
    return "\n".join(made) + "\n"


@st.composite
def documents(draw: st.DrawFn) -> str:
    """A profile of the right keys, with right values and wrong ones."""
    plain = st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
        *(st.dates(), st.binary(max_size=4), st.lists(st.integers(), max_size=2)),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    )
    whole: dict[str, Any] = {}
    for key in draw(st.lists(st.sampled_from(KEYS), max_size=5)):
        section, _, last = key.rpartition(".")
        holder = whole.setdefault(section, {}) if section else whole
        if isinstance(holder, dict):
            holder[last] = draw(plain)
    if isinstance(whole.get("withdrawal"), dict):
        whole["withdrawal"]["policy"] = draw(st.sampled_from(POLICIES))
    return yaml.dump(draw(st.sampled_from((whole, whole, whole, [whole], "text", 3))))


@st.composite
def profiles(draw: st.DrawFn) -> bytes:
    data = draw(st.one_of(lines(), documents())).encode(errors="surrogatepass")
    data = data.decode(errors="replace").encode(
        draw(st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))),
        "replace",
    )
    return draw(damaged(data)) if draw(st.booleans()) else data


@fuzz(120)
@given(data=profiles())
@example(data=b'extends: "\\0.yaml"\n')
@example(data=b"extends: ~nobody/x.yaml\n")
@example(data=b'model: "\\UFFFFFFFF"\n')
@example(data=b"model: " + b"[" * 3000)
def test_a_profile_is_shown_or_refused(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(data)
    run("show", str(file))
    assert snapshot(file) == [data]
    assert [*tmp_path.iterdir()] == [file]


@fuzz(10)
@given(data=profiles())
def test_one_bad_profile_leaves_the_list_of_the_others(data: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "mvw-home" / "profiles"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_bytes(data)
    ran = run("list", "profiles")
    assert ran.code == 0 and all(name in ran.out for name in known_profiles())


typed = st.one_of(values, st.text(max_size=12), st.binary(max_size=6).map(os.fsdecode)).filter(
    lambda text: "\0" not in text
)
"""Words of a command line, which hold no zeros."""


@fuzz(60)
@given(
    pairs=st.lists(st.tuples(st.sampled_from(KEYS), typed), min_size=1, max_size=3),
    name=st.sampled_from((None, "shapes", "qwen2.5-vl-7b")),
)
@example(pairs=[("model", "caf\udce9")], name=None)
def test_set_gives_a_value_or_says_why_not(pairs: list[tuple[str, str]], name: str | None) -> None:
    words = [word for key, value in pairs for word in ("--set", f"{key}={value}")]
    run("show", *([] if name is None else [name]), *words)


@fuzz(60)
@given(
    line=st.one_of(
        st.lists(
            st.sampled_from(
                (*POLICIES, *WRITTEN[:40], ":", ",", "+", "=", " ", "m", "layer", "ratio", "'", "[")
            ),
            max_size=8,
        ).map("".join),
        st.text(max_size=12),
        st.builds("{}:{}={}".format, st.sampled_from(POLICIES), st.sampled_from(KEYS), typed),
    ).filter(lambda text: "\0" not in text)
)
def test_a_line_of_policies_is_read_or_refused(line: str) -> None:
    told(lambda: resolve(None, {"withdrawal.policy": line}))


@fuzz(40)
@given(
    name=st.sampled_from(("MVW_PROFILE", "MVW_MODEL", "MVW_HOME", "MVW_OFFLINE", "MVW_X", "MVW_")),
    value=typed,
)
def test_a_variable_counts_or_is_refused(name: str, value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        run("show")
        run("list", "profiles")


@fuzz(20)
@given(pairs=st.lists(typed, max_size=3))
def test_set_without_a_key(pairs: list[str]) -> None:
    told(lambda: resolve(None, parse_set(pairs)))
