"""What the fuzz tests share: damage to files and documents, and what a command may come to.

`pytest tests/fuzz --hypothesis-profile=long` tries many more examples, other ones each time.
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from processes import Ran

from mvw_cli import console
from mvw_cli.__main__ import main
from mvw_cli.errors import ExitCode, MvwError

LONG = 20
"""How many times as many examples the profile `long` tries."""
_LONGEST = 1000
"""Characters that a line of a message has at most."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_BYTES = re.compile(r"""\bb(['"]).*\\x""")
_BASE64 = re.compile(r"(?=\S*[A-Z])(?=\S*[a-z])(?=\S*[0-9])[A-Za-z0-9+/]{200}")


def fuzz(examples: int) -> Callable[[Any], Any]:
    """Decorate a test with so many examples, always the same ones; more and others in `long`."""
    quiet = {"deadline": None, "suppress_health_check": list(HealthCheck)}
    if settings.get_current_profile_name() == "long":
        return settings(max_examples=LONG * examples, **quiet)
    return settings(max_examples=examples, derandomize=True, database=None, **quiet)


# -- what a command may come to ------------------------------------------------------------------


def run(*arguments: str) -> Ran:
    """Run the command line in this process, and see that its outcome is one that is foreseen."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(arguments)
    ran = Ran(code, out.getvalue(), err.getvalue())
    check(ran)
    return ran


def check(ran: Ran) -> None:
    """See that a command has succeeded, or has failed in three lines that are about the input."""
    assert ran.code != ExitCode.FAILURE, ran.err
    lines = ran.err.splitlines()
    if ran.code in (ExitCode.OK, ExitCode.ITEMS_FAILED, ExitCode.CHECKS_FAILED):
        check_lines(lines)
        return
    if lines[0].startswith("Usage: "):
        return
    error, cause, hint = lines[-3:]
    assert error.startswith("Error: ") and cause.startswith("  ") and hint.startswith("Hint: ")
    assert len(cause.strip()) > 1 and not any(line.startswith("Error") for line in lines[:-3])
    check_lines([error, cause])


def check_lines(lines: list[str]) -> None:
    """See that lines are for people: neither code nor bytes, and of a length to be read."""
    for line in lines:
        line = line.encode(errors="backslashreplace").decode()  # as stderr writes it
        assert "Traceback" not in line and "fault in mvw" not in line
        assert len(line) <= _LONGEST, line
        assert not _CONTROL.search(line), line
        assert not _BYTES.search(line) and not _BASE64.search(line), line


def told(action: Callable[[], Any]) -> tuple[Any, MvwError | None]:
    """Run a part of a command: it returns something, or raises an error in three lines."""
    try:
        return action(), None
    except MvwError as error:
        with redirect_stderr(io.StringIO()) as err:
            console.error(error.message, error.cause, error.hint)
        assert error.exit_code != ExitCode.FAILURE
        check(Ran(error.exit_code, "", err.getvalue()))
        return None, error


# -- damage --------------------------------------------------------------------------------------

_PIECES = (b"\0", b"\xff", b"\xef\xbb\xbf", b"\n", b"\r", b'"', b"'", b",", b"\t", b"{", b"[", b"-")


@st.composite
def damaged(draw: st.DrawFn, data: bytes, most: int = 4) -> bytes:
    """Cut bytes, turn bits, put something in, say something twice."""
    for _ in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 64)))
        match draw(st.sampled_from(["cut", "flip", "insert", "drop", "repeat", "random"])):
            case "cut":
                data = data[:start]
            case "flip":
                bit = 1 << draw(st.integers(0, 7))
                data = data[:start] + bytes(one ^ bit for one in data[start:end]) + data[end:]
            case "insert":
                data = data[:start] + draw(st.sampled_from(_PIECES)) + data[start:]
            case "drop":
                data = data[:start] + data[end:]
            case "repeat":
                data = data[:end] + data[start:end] + data[end:]
            case _:
                data = data[:start] + draw(st.binary(max_size=8)) + data[end:]
    return data


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


JUNK: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 3, 10**30, 0.5, -1e308, float("nan"), float("inf")),
    *("", " ", "x", "0", "\ud800", "\udcff", "a\nb", "\0", "..", "w" * 5000, "\u202e\x9b31m"),
    *([], {}, [None], [[]], {"": None}, {"a": {"b": []}}, nested(60), nested(700)),
)
"""Values that nobody wants."""


def places(document: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """List where in a document a value stands, its whole included."""
    yield here
    inner = document.items() if isinstance(document, dict) else ()
    if isinstance(document, list):
        inner = list(enumerate(document))[:3]
    for key, value in inner:
        yield from places(value, (*here, key))


@st.composite
def altered(draw: st.DrawFn, document: Any, most: int = 2, large: int = 10**30) -> Any:
    """Take keys out of a document, or put values of other types in their place.

    Args:
        large: the largest number among them.
    """
    document = copy.deepcopy(document)
    junk = [one for one in JUNK if not isinstance(one, int) or one <= large] + [large]
    for _ in range(draw(st.integers(1, most))):
        found = [place for place in places(document) if place]
        if not found:
            break
        *path, key = draw(st.sampled_from(found))
        holder = document
        for part in path:
            holder = holder[part]
        match draw(st.sampled_from(["drop", "junk", "junk", "moved"])):
            case "drop":
                del holder[key]
            case "junk":
                holder[key] = copy.deepcopy(draw(st.sampled_from(junk)))
            case _:
                other = document
                for part in draw(st.sampled_from(found)):
                    if isinstance(other, (dict, list)) and part in (
                        other if isinstance(other, dict) else range(len(other))
                    ):
                        other = other[part]
                holder[key] = copy.deepcopy(other)
    return document


def snapshot(*paths: Path) -> list[bytes]:
    """Read files, to see later that nothing has happened to them."""
    return [path.read_bytes() for path in paths]
