"""The line that says how loading goes: its seconds, its size, and that it ends."""

from __future__ import annotations

import io
import os
import threading
from itertools import chain, count
from pathlib import Path
from time import sleep
from types import SimpleNamespace

import pytest
from waiting import until

from mvw_cli.cli import stderr_view
from mvw_cli.cli.stderr_view import ERASE, StderrView


class Terminal(io.StringIO):
    """A terminal of no particular width, and all that has been written to it."""

    encoding = "utf-8"

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return -1

    def write(self, text: str) -> int:
        self.written.append(text)
        return len(text)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put stderr on a terminal that is redrawn a hundred times a second."""
    made = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("mvw_cli.cli.stderr_view.sys", SimpleNamespace(stderr=made))
    monkeypatch.setattr(stderr_view, "REDRAW_S", 0.01)
    return made


def test_it_counts_the_seconds_and_stops(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = chain([1.0], count(1.0))
    monkeypatch.setattr(stderr_view, "monotonic", lambda: next(clock))
    view, threads = StderrView(), threading.active_count()
    view.loading("a\nb")
    assert terminal.written[0] == "Loading a b …"
    until(lambda: len(terminal.written) > 3)
    view.clear()
    assert threading.active_count() == threads
    ended = list(terminal.written)
    assert ended[-1] == ERASE
    shown = [text.removeprefix(ERASE) for text in ended[1:-1]]
    assert shown == [f"Loading a b … {n} s" for n in range(1, len(shown) + 1)]
    sleep(0.05)
    assert terminal.written == ended


def test_the_seconds_go_on_after_a_break(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 10.0, 17.0])
    monkeypatch.setattr(stderr_view, "REDRAW_S", 60.0)
    monkeypatch.setattr(stderr_view, "monotonic", lambda: next(clock))
    view = StderrView()
    view.loading("a")
    view.note("b")
    assert terminal.written == ["Loading a …", ERASE, "b\n", "Loading a … 7 s"]


def test_what_is_counted_stands_in_the_same_line(terminal: Terminal) -> None:
    view = StderrView(ticking=False)
    view.loading("a")
    view.progress("Measuring", 3, 20)
    view.note("b")
    view.clear()
    assert terminal.written == [
        *("Loading a …", f"{ERASE}Measuring 3 of 20", ERASE, "b\n", "Measuring 3 of 20", ERASE)
    ]


def test_it_never_wraps_and_without_ticks_it_stands_still(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = os.terminal_size((20, 5))
    monkeypatch.setattr("os.get_terminal_size", lambda descriptor: size)
    before = threading.active_count()
    StderrView(ticking=False).loading("x" * 100)
    assert threading.active_count() == before
    assert terminal.written == ["Loading " + "x" * 11]


def test_interrupted_it_writes_no_more(terminal: Terminal) -> None:
    view = StderrView()
    view.loading("a")
    assert view.on_interrupt() == f"{ERASE}Interrupted.\n"
    sleep(0.05)
    count = len(terminal.written)
    sleep(0.05)
    assert len(terminal.written) == count
    view.clear()


def test_the_size_of_weights_that_are_here_is_told(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").write_bytes(bytes(2 * 2**20))
    view = StderrView(ticking=False)
    view.loading_model("some/model", None)
    view.loading_model(".", None)
    assert terminal.written == ["Loading some/model …", f"{ERASE}Loading ., 2.0 MiB …"]
