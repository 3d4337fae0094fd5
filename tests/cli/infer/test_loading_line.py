"""The line that says how loading goes: its seconds, its bytes, and that it ends."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from types import SimpleNamespace

import pytest

from mvw_cli.cli import stderr_view
from mvw_cli.cli.stderr_view import ERASE, StderrView, loading_progress


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


def until(true: Callable[[], bool]) -> None:
    end = monotonic() + 10
    while not true():
        assert monotonic() < end, "nothing happened"
        sleep(0.005)


def test_it_counts_the_seconds_and_stops(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(stderr_view, "monotonic", lambda: float(next(clock)))
    view, threads = StderrView(), threading.active_count()
    view.loading("a\nb")
    assert terminal.written[0] == "Loading a b …"
    until(lambda: len(terminal.written) > 3)
    view.loaded()
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
    clock = iter([10.0, 17.0])
    monkeypatch.setattr(stderr_view, "monotonic", lambda: next(clock))
    view = StderrView(ticking=False)
    view.loading("a")
    view.note("b")
    assert terminal.written == ["Loading a …", ERASE, "b\n", "Loading a … 7 s"]


def test_what_it_is_told_comes_before_the_seconds(terminal: Terminal) -> None:
    view = StderrView()
    view.loading_tells(lambda: "3 of 4 KiB fetched,")
    view.loading("a")
    until(lambda: len(terminal.written) > 1)
    view.loaded()
    line = terminal.written[1].removeprefix(ERASE)
    assert re.fullmatch(r"Loading a … 3 of 4 KiB fetched,( \d+ s)?", line)


def test_it_never_wraps_and_without_ticks_it_stands_still(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stderr_view, "terminal_width", lambda descriptor: 20)
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
    view.loaded()


# -- what is fetched ------------------------------------------------------------------------------

MIB = 2**20


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The place of some/model in an empty hub cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub" / "models--some--model"


def test_bytes_are_counted_as_they_come(repository: Path) -> None:
    told = loading_progress("some/model")
    assert told() == ""
    blobs = repository / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "config").write_bytes(b"x" * 1000)
    assert told() == ""
    (blobs / "weights.1234.incomplete").write_bytes(bytes(3 * MIB))
    assert told() == "3.0 MiB fetched,"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    index = {"metadata": {"total_size": 8 * MIB}, "weight_map": {}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert told() == "3.0 MiB of 8.0 MiB fetched,"
    (blobs / "weights.1234.incomplete").rename(blobs / "weights")
    (blobs / "more").write_bytes(bytes(5 * MIB))
    assert told() == "8.0 MiB fetched,"


def test_what_was_there_is_not_counted(repository: Path) -> None:
    blobs = repository / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "old").write_bytes(bytes(5 * MIB))
    told = loading_progress("some/model")
    assert told() == ""
    (blobs / "new").write_bytes(bytes(2 * MIB))
    assert told() == "2.0 MiB fetched,"


def test_of_a_folder_the_size_is_told(tmp_path: Path) -> None:
    assert loading_progress(str(tmp_path))() == ""
    assert loading_progress("embedded")() == ""
    (tmp_path / "model.safetensors").write_bytes(bytes(2 * MIB))
    assert loading_progress(str(tmp_path))() == "2.0 MiB,"
