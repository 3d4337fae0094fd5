"""Sections on stdout: drawn where somebody watches, plain anywhere else, never obeyed by either."""

from __future__ import annotations

import sys
from dataclasses import replace
from io import BytesIO, TextIOWrapper

import pytest
import sample_report

from mvw_cli.bench.report.tables import sections
from mvw_cli.render.sections import Section, Sentence, Table
from mvw_cli.render.terminal import plain, show


def shown(
    monkeypatch: pytest.MonkeyPatch,
    heading: str,
    parts: list[Section],
    *,
    columns: int = 100,
    encoding: str = "utf-8",
    terminal: bool = True,
) -> str:
    raw = BytesIO()
    stream = TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("sys.stdout", stream)
    for name, value in (("TERM", "xterm"), ("COLUMNS", str(columns)), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    show(heading, parts)
    sys.stdout.flush()
    return raw.getvalue().decode("utf-8")


@pytest.mark.parametrize("columns", [60, 100, 160])
def test_the_terminal_shows_what_the_plain_text_says(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = sections(sample_report.report())
    drawn = shown(monkeypatch, "Profile", parts, columns=columns)
    assert max(map(len, drawn.splitlines())) <= columns
    assert "…" not in drawn
    letters = "".join(drawn.split())
    for part in (part for section in parts for part in section.parts):
        if isinstance(part, Sentence):
            assert "".join(part.text.split()) in letters
        elif columns == 160:  # narrower, cells are folded between one another
            assert all("".join(cell.split()) in letters for row in part.rows for cell in row)


def test_neither_obeys_what_a_report_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J[bold]x[/bold]"
    table = Table(["WHAT", evil], [["row", evil]], evil)
    parts = [Section("s", evil, [Sentence(evil), table])]
    for text in (plain(evil, parts), shown(monkeypatch, evil, parts)):
        assert "\x1b" not in text and "[bold]x[/bold]" in text


def test_it_is_plain_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = sections(sample_report.report())
    assert shown(monkeypatch, "P", parts, terminal=False) == plain("P", parts) + "\n"


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_an_ascii_stream_gets_ascii(
    encoding: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = sample_report.report()
    parts = sections(replace(full, environment=replace(full.environment, device_name="GPU")))
    text = shown(monkeypatch, "P", parts, encoding=encoding, terminal=terminal)
    assert ("×" in text) == (encoding == "utf-8")
