"""The grammar of `--policy`: what a line of policies is split into, and what is refused."""

from __future__ import annotations

import pytest

from mvw_cli.errors import UsageProblem
from mvw_cli.profiles.policy_line import parse, split_compositions

LAYER = ("vtw", {"layer": "12"})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("mvw", [("mvw", {})]),
        ("mvw:m=16", [("mvw", {"m": "16"})]),
        ("mvw:m=16,until=</CAPTION>", [("mvw", {"m": "16", "until": "</CAPTION>"})]),
        ("vtw:layer=12+mvw:m=16", [LAYER, ("mvw", {"m": "16"})]),
        (" vtw : layer = 12 + mvw : m = 16 ", [LAYER, ("mvw", {"m": "16"})]),
        ("mvw+look-back", [("mvw", {}), ("look-back", {})]),
        # A value may hold what looks like the grammar's own signs.
        ("mvw:until=a:b", [("mvw", {"until": "a:b"})]),
        ("mvw:until=a=b,m=3", [("mvw", {"until": "a=b", "m": "3"})]),
        ("mass:threshold=1e+5", [("mass", {"threshold": "1e+5"})]),
        ("mvw:until=C++", [("mvw", {"until": "C++"})]),
        ("mvw:until='a,b+c',m=2", [("mvw", {"until": "'a,b+c'", "m": "2"})]),
        ('mvw:until="say \\"a+b\\""+x', [("mvw", {"until": '"say \\"a+b\\""'}), ("x", {})]),
        ("x:tags=[a, b+c],n=1", [("x", {"tags": "[a, b+c]", "n": "1"})]),
        # What opens like quotes or brackets and never ends is a plain value.
        ("mvw:until=[END,m=2", [("mvw", {"until": "[END", "m": "2"})]),
        ("mvw:until=it's,m=2", [("mvw", {"until": "it's", "m": "2"})]),
        ("mvw:until=,m=2", [("mvw", {"until": "", "m": "2"})]),
    ],
)
def test_a_line(text: str, parts: list[tuple[str, dict[str, str]]]) -> None:
    assert parse(text, "--policy") == parts


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("", ""),
        ("m=16", "m=16"),
        ("mvw:m=1+until=x", "until=x"),
        (":m=3", ":m=3"),
        ("mvw:", "mvw:"),
        ("mvw:=3", "mvw:=3"),
        ("mvw:until=a,b", "b"),
        ("none,mvw:m=1", "mvw:m=1"),
    ],
)
def test_what_is_no_line(text: str, piece: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        parse(text, "--policy")
    assert caught.value.message == f"--policy: `{piece}` is no policy with its fields"
    assert "NAME:KEY=VALUE" in (caught.value.cause or "")


def test_a_field_given_twice() -> None:
    with pytest.raises(UsageProblem, match="--policy: `m` of policy `mvw` is given twice"):
        parse("mvw:m=1,m=2", "--policy")


@pytest.mark.parametrize(
    ("text", "arms"),
    [
        ("a,b", ("a", "b")),
        ("vtw:layer=12+mvw:m=16,mvw:m=16", ("vtw:layer=12+mvw:m=16", "mvw:m=16")),
        ("mvw:m=4,until=x,mvw:m=8", ("mvw:m=4,until=x", "mvw:m=8")),
        ("a:k=1,l=2+b:m=3,n=4,c", ("a:k=1,l=2+b:m=3,n=4", "c")),
        ("mvw:until='a,b',mvw", ("mvw:until='a,b'", "mvw")),
        ("a, b , a,", ("a", "b")),
        (" , ", ()),
    ],
)
def test_a_sweep(text: str, arms: tuple[str, ...]) -> None:
    assert split_compositions(text) == arms
