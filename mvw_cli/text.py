"""How amounts, words and foreign text are written for people."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable

from mvw_cli.errors import UsageProblem

_IMAGE = re.compile(
    r"\s*((?i:data:)"
    r"|(iVBOR|/9j/|R0lGOD|UklGR|Qk[0-3]|SUkq|TU0A|AAAA|PHN2Zy|PD94bW|JVBER)[\w+/\s-]{60,}=*\s*\Z"
    r"|[\w+/\s-]{60,}==?\s*\Z|[\w+/\s-]{512,}\Z)",
    re.ASCII,
)
"""A data URL; base64 that starts as PNG, JPEG, GIF, WebP, BMP, TIFF, HEIF, SVG or PDF do; and what
ends as base64 does, or has no dot and is long."""
_LONGEST_PATH = 4096  # bytes, that Linux takes
# A picture can hold text that a model reads out, and a plugin or a file any name: escape sequences
# act on a terminal, directions and line separators put one text in another's place, and what has no
# width hides. Joiners shape Persian, Hindi and emoji; after ASCII they do nothing but hide.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
    r"|(?<=[ -~])[\u200c\u200d]"
)
_SHOWN = {**{chr(code): chr(0x2400 + code) for code in range(0x20)}, "\x7f": "␡", "\u200b": ""}
"""The space without width ends words in Khmer and Thai: a mark there would be in every line."""


def printable(text: str) -> str:
    """Replace what a terminal would obey, or not show, by what can be seen; each character for
    itself, so that a text may come in pieces. Line breaks and tabs stay.
    """
    return _UNSAFE.sub(lambda found: _SHOWN.get(found[0], "�"), text)


def escaped(document: str) -> str:
    """Write the same characters of a JSON document as its escapes, which read back as they were."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def is_unicode(text: str) -> bool:
    """Whether a text has no halves of characters, which stand for bytes that are not UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def holds_image(text: str) -> bool:
    """Whether a text is an image itself, as a data URL or in base64, and no path."""
    return len(text) > _LONGEST_PATH or _IMAGE.match(text) is not None


def check_paths(paths: Iterable[str | None]) -> None:
    """Refuse an image in the place of a path, before a message has it in it.

    Raises:
        UsageProblem: one of them is an image.
    """
    if any(path and holds_image(path) and not os.path.lexists(path) for path in paths):
        raise UsageProblem(
            "An image is given as text, in the place of a path",
            cause="data URLs and base64 are read in files of questions, as the value of image",
            hint="mvw batch --help",
        )


def as_unicode(text: str) -> str:
    """Put a sign in the place of each half of a character."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def one_line(text: str) -> str:
    """Make a text printable and put it on one line."""
    return printable(" ".join(text.split()))


def error_line(error: BaseException) -> str:
    """Name an exception in one line, as the cause of a message."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:299] + "…"
    name = type(error).__name__
    if text.startswith(name):
        return text
    return f"{name}: {text}" if text else name


def readable_bytes(amount: float) -> str:
    """Write bytes in the largest unit, up to GiB, that leaves at least 1 of it."""
    if amount < 1024:
        return f"{amount:.0f} B"
    for unit in ("KiB", "MiB"):
        amount /= 1024
        if amount < 1024:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.2f} GiB"


MISSING = "-"
"""Stands where nothing was measured."""


def number(value: float) -> str:
    """Write a number with three significant digits, whole from 1,000 on."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    rounded = float(f"{value:.2e}")
    if abs(rounded) >= 1000:
        return f"{value:,.0f}"
    return f"{rounded:.{2 - math.floor(math.log10(abs(rounded)))}f}"


def count(value: float) -> str:
    """Write a number of things: whole where it is."""
    return f"{value:,.0f}" if float(value).is_integer() else number(value)


def plural(amount: int, noun: str) -> str:
    """Write a number with its noun: `1 token`, `2 tokens`."""
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def scaled(amount: float, unit: str) -> str:
    """Write a large amount with a prefix of its unit: `23.0 TFLOP`."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if amount >= size:
            return f"{number(amount / size)} {prefix}{unit}"
    return f"{number(amount)} {unit}"


def millions(amount: int) -> str:
    """Write a large count in millions or billions."""
    if amount >= 10**8:
        return f"{amount / 1e9:.2f} billion"
    return f"{amount / 1e6:.2f} million" if amount >= 10**5 else f"{amount:,}"


def milliseconds(value: float) -> str:
    """Write a time given in milliseconds, in µs, ms or s."""
    if 0 < abs(value) < 0.1:
        return f"{number(1000 * value)} µs"
    return f"{number(value)} ms" if abs(value) < 999.5 else f"{number(value / 1000)} s"


def seconds(value: float) -> str:
    """Write a time given in seconds."""
    return f"{number(value)} s" if abs(value) >= 1 else milliseconds(1000 * value)


def percent(share: float) -> str:
    """Write a share; what is neither none nor all does not become it by rounding."""
    written = f"{100 * share:.1f}"
    if written == "100.0" and share < 1:
        return "> 99.9 %"
    if float(written) == 0 and share != 0:
        return "< 0.1 %" if share > 0 else "> -0.1 %"
    return f"{written.removesuffix('.0')} %"


def percents(interval: tuple[float, float]) -> str:
    """Write an interval of shares: `[60 %, 85 %]`."""
    return "[" + ", ".join(f"{100 * end:.0f} %" for end in interval) + "]"


def factor(value: float, interval: tuple[float, float] | None = None) -> str:
    """Write how many times as much: `1.25 ×`, or `1.25 × [1.10, 1.41]`.

    An end of the interval that is not 1 is not rounded to 1.
    """
    if interval is None:
        return f"{value:.2f} ×"
    places = 2
    while places < 5 and any(end != 1 and float(f"{end:.{places}f}") == 1 for end in interval):
        places += 1
    low, high = interval
    return f"{value:.{places}f} × [{low:.{places}f}, {high:.{places}f}]"


def closest(word: str, known: Iterable[str]) -> str | None:
    """Find the known word that is nearest to `word`, or None where none is near."""
    from difflib import get_close_matches

    spelling = {name.lower().replace("-", "_"): name for name in known}
    near = get_close_matches(word.lower().replace("-", "_"), spelling, n=1, cutoff=0.6)
    return spelling[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str], *, otherwise: str) -> str:
    """Write "did you mean `x`?", or `otherwise` where nothing is near."""
    near = closest(word, known)
    return f"did you mean `{near}`?" if near else otherwise
