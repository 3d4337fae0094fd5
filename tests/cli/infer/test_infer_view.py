"""What a person sees on stderr, event by event, on a real pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import sys
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from mvw_cli import console
from mvw_cli.cli import stderr_view
from mvw_cli.cli.infer.view import View
from mvw_cli.engine.types import Event, Finished, Token, Withdrawn
from mvw_cli.text import one_line, printable

Shown = Callable[[], str]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shown]:
    """Put stderr on a terminal; the function tells what it got since the last call."""
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    stream = os.fdopen(slave, "w", encoding="utf-8")
    # The module's own view of sys: pytest exchanges sys.stderr between set-up and test.
    monkeypatch.setattr("mvw_cli.cli.stderr_view.sys", SimpleNamespace(stderr=stream))

    def shown() -> str:
        data = b""
        while select.select([master], [], [], 0.2)[0]:
            data += os.read(master, 1 << 16)
        return data.decode().replace("\r\n", "\n")

    yield shown
    monkeypatch.undo()
    stream.close()
    os.close(master)


def events(*words: str, after: int = 2) -> Iterator[Event]:
    for step, word in enumerate(words, 1):
        yield Token("0", 0.0, step=step, id=step, text=word)
        if step == after:
            yield Withdrawn("0", 0.0, step, 16, 32, 2048, 1024, 0.0)
    yield Finished("0", 0.0, "eos", "".join(words), (), 0, 0)


def play(view: View, *words: str, after: int = 2) -> None:
    for event in events(*words, after=after):
        view.show(event)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


ERASE = "\r\x1b[K"
MARK = (
    "vision withdrawn after token 2: 16 vision tokens (32 cache entries), 1.0 KiB of 2.0 KiB freed"
)


def test_a_text_with_lines_of_its_own(terminal: Shown) -> None:
    play(View(show_text=None), "one\n", " two\n", "\nthree\n")
    assert plain(terminal()) == f"one\ntwo\n── {MARK} ──\n\nthree\n"


def test_hidden(terminal: Shown) -> None:
    play(View(show_text=False), "one", " two", " three")
    assert plain(terminal()) == f"── {MARK} ──\n"


def test_quiet(terminal: Shown) -> None:
    console.settings.quiet = True
    view = View(show_text=True)
    view.loading("a")
    play(view, "one", " two")
    view.warn("no")
    assert (terminal(), view.on_interrupt()) == ("", "")


def test_a_terminal_without_box_characters(
    terminal: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr_view.sys.stderr.reconfigure(encoding="ascii", errors="backslashreplace")  # type: ignore
    view = View(show_text=None)
    view.loading("a")
    view.clear()
    play(view, "one", " two")
    assert plain(terminal()) == f"Loading a ...\r\x1b[Kone two\n-- {MARK} --\n"


def test_a_note_while_loading_keeps_the_loading_line_last(terminal: Shown) -> None:
    view = View(show_text=None)
    view.loading("a\x1bb")
    view.note("note")
    assert plain(terminal()) == "Loading a␛b …\r\x1b[Knote\nLoading a␛b …"
    assert view.on_interrupt() == "\r\x1b[KInterrupted.\n"
    view.clear()
    view.clear()
    assert terminal() == "\r\x1b[K"


def test_a_warning_while_loading_gets_a_line_of_its_own(
    terminal: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = stderr_view.sys.stderr
    monkeypatch.setattr(warnings, "showwarning", lambda message, *rest: stderr.write("careful\n"))
    view = View(show_text=None)
    with view.making_room(), warnings.catch_warnings():
        warnings.simplefilter("always")
        view.loading("a")
        warnings.warn("careful", stacklevel=1)
        view.clear()
        warnings.warn("careful", stacklevel=1)
        stderr.flush()
    assert plain(terminal()) == f"Loading a …{ERASE}careful\nLoading a …{ERASE}careful\n"


def test_last_words(terminal: Shown) -> None:
    shown, hidden = View(show_text=True), View(show_text=False)
    assert shown.on_interrupt() == hidden.on_interrupt() == "Interrupted.\n"
    for view in (shown, hidden):
        view.show(Token("0", 0.0, 1, 1, "one\x1b"))
    assert shown.on_interrupt() == "\nInterrupted.\n"
    assert hidden.on_interrupt() == "one␛\nInterrupted.\n"


def test_a_stderr_that_breaks_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", stream)
    play(View(show_text=True), "one", " two")
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_control_characters_are_made_visible() -> None:
    text = "".join(map(chr, range(0xA1)))
    safe = printable(text)
    assert len(safe) == len(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", safe)
    assert "\t\n" in safe and safe[32:127] == text[32:127]
    assert one_line("a\n\n b\r\x1b") == "a b ␛"
