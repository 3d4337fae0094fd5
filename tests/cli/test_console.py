"""Colour, quiet and the two streams, on real terminals where it matters."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from mvw_cli import console

ESCAPE = "\x1b["


def in_terminal(arguments: list[str], stream: str, cwd: Path, **env: str) -> tuple[str, str]:
    """Run mvw with one stream on a terminal; return what the terminal and the pipe got."""
    ours, theirs = pty.openpty()
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: theirs}
    process = subprocess.Popen(
        [sys.executable, "-m", "mvw_cli", *arguments],
        cwd=cwd,
        env={**os.environ, "TERM": "xterm-256color", **env},
        **streams,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # how Linux says that the other side of a terminal is gone
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    piped = process.stdout if stream == "stderr" else process.stderr
    assert piped is not None
    text = piped.read().decode()
    piped.close()
    process.wait()
    return shown.decode(), text


@pytest.mark.parametrize(
    ("env", "options", "colored"),
    [
        ({}, [], True),
        ({"NO_COLOR": "1"}, [], False),
        ({"NO_COLOR": ""}, [], True),
        ({"TERM": "dumb"}, [], False),
        ({}, ["--no-color"], False),
        ({"FORCE_COLOR": "1"}, ["--no-color"], False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, [], False),
    ],
)
def test_colour_on_a_terminal(
    env: dict[str, str], options: list[str], colored: bool, tmp_path: Path
) -> None:
    shown, _ = in_terminal([*options, "show", "no-such-profile"], "stderr", tmp_path, **env)
    assert "Error: " in shown
    assert (ESCAPE in shown) == colored


def test_each_stream_is_judged_apart(tmp_path: Path) -> None:
    shown, piped = in_terminal(["list", "adapters"], "stdout", tmp_path)
    assert ESCAPE in shown and "─" in shown
    shown, piped = in_terminal(["list", "adapters"], "stderr", tmp_path)
    assert (shown, ESCAPE in piped, "─" in piped) == ("", False, False)


def test_a_plain_table_is_aligned_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(["A", "LONG NAME"], [["x" * 200, "y"], ["z", "two\nlines"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "A" + " " * 201 + "LONG NAME",
        "x" * 200 + "  y",
        "z" + " " * 201 + "two lines",
    ]


def test_quiet_keeps_errors_and_drops_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    console.settings.quiet = True
    console.note("a remark")
    console.warn("a warning")
    console.err().print("progress")
    console.error("what", "why", "mvw list adapters")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "Error: what\n  why\nHint: mvw list adapters\n"


def test_text_is_never_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.out().print("[bold]not bold[/bold] [/nonsense] :smile:")
    console.error("file [red]x.png[/red]")
    captured = capsys.readouterr()
    assert captured.out == "[bold]not bold[/bold] [/nonsense] :smile:\n"
    assert captured.err == "Error: file [red]x.png[/red]\n"


def test_forced_colour_draws_no_boxes_into_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console.table(["A"], [["b"]])
    console.error("what")
    captured = capsys.readouterr()
    assert captured.out == "A\nb\n" and ESCAPE in captured.err


def test_json_keeps_its_characters(capsys: pytest.CaptureFixture[str]) -> None:
    console.write_json({"text": "◁think▷ é"})
    out = capsys.readouterr().out
    assert "◁think▷ é" in out
    assert json.loads(out) == {"text": "◁think▷ é"}
