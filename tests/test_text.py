"""How amounts are written: three digits, a unit, and nothing rounded to what it is not."""

from __future__ import annotations

import json

import pytest

from mvw_cli.text import (
    count,
    error_line,
    escaped,
    factor,
    millions,
    milliseconds,
    number,
    one_line,
    percent,
    percents,
    printable,
    readable_bytes,
    scaled,
    seconds,
)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (readable_bytes(0), "0 B"),
        (readable_bytes(1023), "1023 B"),
        (readable_bytes(1536), "1.5 KiB"),
        (readable_bytes(5 << 20), "5.0 MiB"),
        (readable_bytes(3 << 40), "3072.00 GiB"),
        (number(0.012345), "0.0123"),
        (number(9.996), "10.0"),
        (number(12345.6), "12,346"),
        (count(3.0), "3"),
        (count(3.5), "3.50"),
        (milliseconds(0.05), "50.0 µs"),
        (milliseconds(999.6), "1.00 s"),
        (seconds(0.0301), "30.1 ms"),
        (scaled(23e12, "FLOP"), "23.0 TFLOP"),
        (millions(10_670_000_000), "10.67 billion"),
        (millions(99_999), "99,999"),
        (percent(0.5), "50 %"),
        (percent(0.988), "98.8 %"),
        (percent(0.9999), "> 99.9 %"),
        (percent(1.0), "100 %"),
        (percent(0.0001), "< 0.1 %"),
        (percent(-0.0001), "> -0.1 %"),
        (percent(0.0), "0 %"),
        (percent(1.3), "130 %"),
        (percents((0.604, 0.85)), "[60 %, 85 %]"),
        (factor(1.254), "1.25 ×"),
        (factor(1.254, (1.1, 1.406)), "1.25 × [1.10, 1.41]"),
        (factor(1.01, (1.0004, 1.02)), "1.0100 × [1.0004, 1.0200]"),
        (one_line("a\n\n b\r\x1b"), "a b ␛"),
        (error_line(ValueError("two\nlines")), "ValueError: two lines"),
        (error_line(KeyError()), "KeyError"),
    ],
)
def test_amounts_are_written_for_people(written: str, expected: str) -> None:
    assert written == expected


FOREIGN = {
    "\x1b[2J\x9b31m\x7f\r": "␛[2J�31m␡␍",  # sequences, in 7 and in 8 bits
    "\u202egnp.exe\u2066\u2069": "�gnp.exe��",  # directions
    "a\u2028b\u2029": "a�b�",  # line separators
    "a\u200bb\u2060\ufeff": "ab��",  # no width
    "ad\u200dmin \u200cx": "ad�min �x",  # joiners that join nothing
    # What languages are written with, and emoji put together, is left alone.
    "שלום \u200fعربى\u200e ی\u200cک": "שלום \u200fعربى\u200e ی\u200cک",
    "👩\u200d💻 ❤\ufe0f\u200d🔥 क\u094d\u200dष": "👩\u200d💻 ❤\ufe0f\u200d🔥 क\u094d\u200dष",
    "\ta\nb é": "\ta\nb é",
}


@pytest.mark.parametrize("text", FOREIGN)
def test_what_a_terminal_would_obey_is_made_visible(text: str) -> None:
    assert printable(text) == FOREIGN[text]
    written = escaped(json.dumps({"a": text}, ensure_ascii=False))
    assert json.loads(written) == {"a": text}  # nothing is lost in a document
    assert printable(written) == written


def test_a_sequence_that_comes_in_pieces_is_no_other() -> None:
    text = "".join(FOREIGN).replace("\u200d", "").replace("\u200c", "")
    assert "".join(map(printable, text)) == printable(text)
