"""Text from a model, a file name or a plugin, made harmless for a terminal.

A picture can hold text that a model reads out, escape sequences included.
"""

_HARMLESS = "\t\n"
_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in _HARMLESS}
_TABLE = {**_PICTURES, 0x7F: "␡", **dict.fromkeys(range(0x80, 0xA0), "�")}


def printable(text: str) -> str:
    """Replace control characters by visible ones; line breaks and tabs stay."""
    return text.translate(_TABLE)


def one_line(text: str) -> str:
    """Make a text printable and put it on one line."""
    return printable(" ".join(text.split()))
