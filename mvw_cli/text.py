"""How amounts, words and foreign text are written for people."""

from __future__ import annotations

from collections.abc import Iterable

# A picture can hold text that a model reads out, escape sequences included.
_HARMLESS = "\t\n"
_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in _HARMLESS}
_TABLE = {**_PICTURES, 0x7F: "␡", **dict.fromkeys(range(0x80, 0xA0), "�")}


def printable(text: str) -> str:
    """Replace control characters by visible ones; line breaks and tabs stay."""
    return text.translate(_TABLE)


def one_line(text: str) -> str:
    """Make a text printable and put it on one line."""
    return printable(" ".join(text.split()))


def readable_bytes(count: float) -> str:
    """Write bytes in the largest unit, up to GiB, that leaves at least 1 of it."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.2f} GiB"


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
