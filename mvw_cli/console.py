"""What goes where: results to stdout or a file, everything else to stderr.

Holds the policy on colour and quiet for both streams, each judged apart. Rich is imported only
where something is really drawn with it.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mvw_cli.errors import MvwError
from mvw_cli.text import escaped, one_line, printable

if TYPE_CHECKING:
    from rich.console import Console


_LONGEST = 900
"""Characters of a line of an error: a name may be an image in base64."""


@dataclass(slots=True)
class Settings:
    """What the global options ask for."""

    quiet: bool = False
    no_color: bool = False
    debug: bool = False


settings = Settings()

stderr_fd = 2
"""Where the last words of a process go: another one while descriptor 2 is lent to a library."""


def reset() -> None:
    """Go back to the state at the start of a process."""
    settings.quiet = settings.no_color = settings.debug = False


def is_terminal(stream: TextIO) -> bool:
    """Whether a person watches this stream, so that it may be drawn on and redrawn."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_color(stream: TextIO) -> bool:
    """Whether this stream takes escape codes: --no-color, NO_COLOR, FORCE_COLOR, terminal."""
    if settings.no_color or os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or is_terminal(stream)


def out() -> Console:
    """Make the console of stdout: for the result and nothing else."""
    return _console(sys.stdout)


def err() -> Console:
    """Make the console of stderr: for progress, warnings and remarks; mute under -q."""
    return _console(sys.stderr, quiet=settings.quiet)


def _console(stream: TextIO, *, quiet: bool = False) -> Console:
    from rich.console import Console

    return Console(
        stderr=stream is sys.stderr,
        quiet=quiet,
        # Rich would take FORCE_COLOR for a terminal and draw boxes and spinners into a file.
        force_terminal=has_color(stream) or is_terminal(stream),
        force_interactive=is_terminal(stream),
        color_system="auto" if has_color(stream) else None,
        highlight=False,
        markup=False,  # file names and model output may contain [brackets]
        emoji=False,
    )


def write(text: str, *, drawn: bool = False) -> None:
    """Write one piece of the result to stdout: as it is to a file, cleaned to a terminal.

    Args:
        drawn: whether it has been cleaned already, and has colours.
    """
    # A file gets what the model wrote; a terminal must not obey it.
    clean = is_terminal(sys.stdout) and not drawn
    sys.stdout.write((printable(text) if clean else text) + "\n")


def write_json(document: object) -> None:
    """Write one JSON document to stdout."""
    import json

    write(escaped(json.dumps(document, indent=2, ensure_ascii=False)))


def deliver(text: str, path: str | None, *, or_print: bool = True) -> None:
    """Write a result to its destination.

    Args:
        or_print: whether what a file does not take goes to stdout instead.

    Raises:
        MvwError: the file could not be written.
    """
    from mvw_cli.files import replacing  # not on the way to every command's help

    if path is None or path == "-":
        _to_stdout(text)
        return
    try:
        with replacing(Path(os.path.realpath(path))) as file:
            file.write((text + "\n" if text else "").encode(errors="backslashreplace"))
    except OSError as error:
        if or_print:
            _to_stdout(text)
        instead = "the result was printed instead" if or_print else "the answer was delivered"
        raise MvwError(
            f"Cannot write {path}",
            cause=f"{error.strerror or error}; {instead}",
            hint=f"df -h {shlex.quote(os.path.dirname(os.path.realpath(path)))}",
        ) from None


def _to_stdout(text: str) -> None:
    if not text:
        return
    try:
        write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon_stdout()
        sys.stderr.write(printable(text) + "\n")
        raise MvwError(
            "Cannot write to stdout",
            cause=f"{error.strerror or error}; the result is on stderr",
            hint="df -h .",
        ) from None


def abandon_stdout() -> None:
    """Let go of stdout: what is in its buffer would fail again when Python shuts down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Let what code of others writes to stdout come out on stderr, down to descriptor 1.

    A C library knows nothing of `sys.stdout`. Where a descriptor is closed, Python's own is moved.
    """
    import ctypes

    def flush() -> None:
        with suppress(AttributeError, OSError, ValueError):
            sys.__stdout__.flush()  # type: ignore[union-attr]
        ctypes.CDLL(None).fflush(None)

    with redirect_stdout(sys.stderr):
        flush()
        try:
            stdout = os.dup(1)
        except OSError:
            yield
            return
        try:
            with suppress(OSError):
                os.dup2(2, 1)
            yield
        finally:
            flush()
            os.dup2(stdout, 1)
            os.close(stdout)


def note(text: str) -> None:
    """Write one line to stderr, unless -q is given."""
    if not settings.quiet:
        _line(text, "")


def warn(text: str) -> None:
    """Write one warning line to stderr, unless -q is given."""
    if not settings.quiet:
        _line(text, "yellow", label="Warning: ")


def error(message: str, cause: str | None = None, hint: str | None = None) -> None:
    """Write what happened, why, and what to type next to stderr; -q does not silence it."""
    # A line each, whatever file names or libraries put into them.
    _line(_brief(message), "bold red", label="Error: ")
    if cause:
        _line(_brief(cause), "", label="  ")
    if hint:  # whole, and where a quoted name has a line break, as shells write it on one line
        _line(hint.replace("\n", "'$'\\n''"), "bold", label="Hint: ")


def _brief(text: str) -> str:
    text = text.replace("\n", " ")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 100]} … {text[-90:]}"


def _line(text: str, style: str, label: str = "") -> None:
    text = printable(text)  # it may hold a file name, and a file name may hold anything
    if not has_color(sys.stderr):
        sys.stderr.write(f"{label}{text}\n")
        return
    from rich.text import Text

    line = Text.assemble((label, style), (text, "" if label else style))
    # Soft wrapping leaves line breaks to the terminal, so that a hint can be copied whole.
    _console(sys.stderr).print(line, soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to stdout: drawn on a terminal, plain aligned columns anywhere else."""
    if not is_terminal(sys.stdout):
        lines = [[one_line(cell) for cell in row] for row in (columns, *rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            write("  ".join(cells).rstrip())
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*map(printable, columns), box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in drawn.columns:
        column.overflow = "fold"
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    out().print(drawn)
