"""The YAML reader: plain data with lines, and nothing that YAML could do to us."""

from __future__ import annotations

import pytest

from mvw_cli.profiles.document import DocumentError, read


def test_values_follow_yaml_1_2() -> None:
    text = """
    text: no
    also: 1:30
    date: 2025-01-01
    number: 1e-3
    octal: 0o17
    hex: 0x1F
    leading: 010
    point: .5
    truth: True
    nothing: ~
    empty:
    quoted: "16"
    folded: >-
      two
      lines
    """
    assert read(text).value == {
        "text": "no",
        "also": "1:30",
        "date": "2025-01-01",
        "number": 0.001,
        "octal": 15,
        "hex": 31,
        "leading": 10,
        "point": 0.5,
        "truth": True,
        "nothing": None,
        "empty": None,
        "quoted": "16",
        "folded": "two lines",
    }


def test_every_key_and_item_has_its_line() -> None:
    document = read("a: 1\n\nb:\n  c:\n    - x\n    - y\n")
    assert document.lines == {
        ("a",): 1,
        ("b",): 3,
        ("b", "c"): 4,
        ("b", "c", 0): 5,
        ("b", "c", 1): 6,
    }


def test_an_empty_file_is_nothing() -> None:
    assert read("# a comment\n").value is None


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("a: 1\nb:\n  a: 2\n  a: 3\n", "key `a` is given twice (first in line 3)", 4),
        ("a: 1\na: 2\n", "key `a` is given twice (first in line 1)", 2),
        ("a: b: c\n", "mapping values are not allowed here", 1),
        ("a: 1\n---\nb: 2\n", "but found another document", 2),
        ("a: 1\nb: \x00\n", "unacceptable character", None),
        ("a: 1\n? [x]\n: 2\n", "a key must be a word", 2),
        ("a: !!python/object/apply:os.system ['true']\n", "tag tag:yaml.org,2002:python", 1),
        ('a: "\\uD800"\n', "is no text", 1),
        ("a: !mine 1\n", "tag !mine is not allowed", 1),
        ("a: !!int x\n", "`x` is no whole number", 1),
        ("a: &x [1]\nb: *x\n", "anchors are not read", 2),
        ("[" * 100_000, "nested too deeply", None),
    ],
)
def test_what_is_refused(text: str, message: str, line: int | None) -> None:
    with pytest.raises(DocumentError) as caught:
        read(text)
    assert message in caught.value.message
    assert line is None or caught.value.line == line


def test_a_tag_can_not_run_code(tmp_path: object) -> None:
    import os

    with pytest.raises(DocumentError):
        read("!!python/object/apply:os.putenv [MVW_OWNED, yes]")
    assert "MVW_OWNED" not in os.environ
