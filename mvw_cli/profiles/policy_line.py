"""Withdrawal policies in one line: `vtw:layer=12+mvw:m=16`, as `--policy` has it.

NAME, or NAME:KEY=VALUE,KEY=VALUE; several joined by "+" act in that order. A value is read as YAML
later, once the type of its field is known; one that holds "," or "+" stands in quotes or brackets.
"""

from __future__ import annotations

import re

from mvw_cli.errors import UsageProblem

_SEPARATOR = re.compile(r",|\+(?=\s*[A-Za-z_])")  # 1e+5 and C++ hold no separator
_ENCLOSED = re.compile(
    r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|\[[^\[\]]*\])(?=\s*(?:,|\+|$))""", re.DOTALL
)
_FIELD = re.compile(r"\s*([^:=,+]+?)\s*=(.*)\Z", re.DOTALL)
_POLICY = re.compile(r"\s*([^:=,+]*[^:=,+\s])\s*(?::([^:=,+]+=.*))?\Z", re.DOTALL)


def parse(text: str, where: str) -> list[tuple[str, dict[str, str]]]:
    """Read the policies of one line, in order: each its name, and its fields as they were typed.

    Args:
        where: what the line comes from, for the message.

    Raises:
        UsageProblem: it is no such line, or gives a field twice.
    """
    found: list[tuple[str, dict[str, str]]] = []
    for separator, piece in _pieces(text):
        written: str | None = piece
        if separator != ",":
            policy = _POLICY.match(piece)
            if policy is None:
                raise _not_a_line(piece, where)
            found.append((policy[1], {}))
            written = policy[2]
        if written is None:
            continue
        name, fields = found[-1]
        field = _FIELD.match(written)
        if field is None:
            raise _not_a_line(piece, where)
        key, value = field[1], field[2].strip()
        if key in fields:
            raise UsageProblem(
                f"{where}: `{key}` of policy `{name}` is given twice",
                cause=f"{key}={fields[key]} and {key}={value}: give one of them",
                hint="mvw list policies",
            )
        fields[key] = value
    return found


def split_compositions(text: str) -> tuple[str, ...]:
    """Split a line at the commas that begin another composition: `a:k=1,l=2+b,c` is two of them."""
    found: list[str] = []
    for separator, piece in _pieces(text):
        if separator == "+" or (separator == "," and _FIELD.match(piece)):
            found[-1] += separator + piece
        else:
            found.append(piece)
    return tuple(dict.fromkeys(one for one in found if one))


def _pieces(text: str) -> list[tuple[str, str]]:
    """Split at every separator outside quotes and brackets; each piece with the one before it."""
    found: list[tuple[str, str]] = []
    before, start, place = "", 0, 0
    while place < len(text):
        enclosed = _ENCLOSED.match(text, place + 1) if text[place] == "=" else None
        separator = _SEPARATOR.match(text, place)
        if enclosed:
            place = enclosed.end()
        elif separator:
            found.append((before, text[start:place].strip()))
            before, start = separator.group(), separator.end()
            place = start
        else:
            place += 1
    return [*found, (before, text[start:].strip())]


def _not_a_line(piece: str, where: str) -> UsageProblem:
    return UsageProblem(
        f"{where}: `{piece}` is no policy with its fields",
        cause="a policy is written NAME or NAME:KEY=VALUE,KEY=VALUE, as in mvw:m=16; several are "
        'joined by "+", and a value that holds a comma stands in quotes',
        hint="mvw list policies",
    )
