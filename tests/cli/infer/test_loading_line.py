"""The line that says how loading goes: its seconds, its bytes, and that it ends."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import pytest

from mvw_cli.cli import loading_line
from mvw_cli.cli.loading_line import ERASE, LoadingLine, progress, terminal_width


def until(true: Callable[[], bool]) -> None:
    end = monotonic() + 10
    while not true():
        assert monotonic() < end, "nothing happened"
        sleep(0.005)


def line_of(written: list[str], width: int = 80, every_s: float | None = 0.01) -> LoadingLine:
    return LoadingLine(written.append, width=lambda: width, every_s=every_s)


def test_it_counts_the_seconds_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(loading_line, "monotonic", lambda: float(next(clock)))
    written: list[str] = []
    line = line_of(written)
    threads = threading.active_count()
    line.start("a\nb")
    assert written == ["Loading a b …"]
    until(lambda: len(written) > 3)
    line.stop()
    assert threading.active_count() == threads
    ended = list(written)
    assert ended[-1] == ERASE
    shown = [text.removeprefix(ERASE) for text in ended[1:-1]]
    assert shown == [f"Loading a b … {n} s" for n in range(1, len(shown) + 1)]
    sleep(0.05)
    assert written == ended


def test_the_seconds_go_on_after_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 17.0])
    monkeypatch.setattr(loading_line, "monotonic", lambda: next(clock))
    written: list[str] = []
    line = line_of(written, every_s=None)
    line.start("a")
    line.stop()
    line.start("a")
    assert written == ["Loading a …", ERASE, "Loading a … 7 s"]


def test_what_it_is_told_comes_before_the_seconds() -> None:
    written: list[str] = []
    line = line_of(written)
    line.about = lambda: "3 of 4 KiB fetched,"
    line.start("a")
    until(lambda: len(written) > 1)
    line.stop()
    assert re.fullmatch(r"Loading a … 3 of 4 KiB fetched,( \d+ s)?", written[1][len(ERASE) :])


def test_it_never_wraps_and_without_ticks_it_stands_still() -> None:
    written: list[str] = []
    line = line_of(written, width=20, every_s=None)
    before = threading.active_count()
    line.start("x" * 100)
    assert threading.active_count() == before
    assert written == ["Loading " + "x" * 11]


def test_silenced_it_writes_no_more() -> None:
    written: list[str] = []
    line = line_of(written)
    line.start("a")
    line.silence()
    sleep(0.05)
    count = len(written)
    sleep(0.05)
    assert len(written) == count
    line.stop()


def test_a_descriptor_that_is_no_terminal(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert terminal_width(file.fileno()) == 80


# -- what is fetched ------------------------------------------------------------------------------

MIB = 2**20


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The place of some/model in an empty hub cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub" / "models--some--model"


def test_bytes_are_counted_as_they_come(repository: Path) -> None:
    told = progress("some/model")
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
    told = progress("some/model")
    assert told() == ""
    (blobs / "new").write_bytes(bytes(2 * MIB))
    assert told() == "2.0 MiB fetched,"


def test_of_a_folder_the_size_is_told(tmp_path: Path) -> None:
    assert progress(str(tmp_path))() == ""
    assert progress("embedded")() == ""
    (tmp_path / "model.safetensors").write_bytes(bytes(2 * MIB))
    assert progress(str(tmp_path))() == "2.0 MiB,"
