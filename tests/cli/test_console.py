"""Colour, quiet and the two streams, on real terminals where it matters."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_path import plugin_path

from mvw_cli import console
from mvw_cli.text import escaped

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


EVIL = "a\x1b[2J\x9b1A\u202eb\u2066c\u2060\ufeff\u2028d"
KEPT = "שלום 👩\u200d💻"
PLUGIN = """
from pathlib import Path
from mvw_cli import AdapterInfo, PolicyInfo, hookimpl
import click

@hookimpl
def mvw_register_adapters(register):
    register(AdapterInfo(f"ad{EVIL}", "x:X", KEPT + EVIL))

@hookimpl
def mvw_register_policies(register):
    register(PolicyInfo(f"po{EVIL}", "x:X", KEPT + EVIL))

@hookimpl
def mvw_register_profiles(register):
    register(Path(__file__).parent)

@hookimpl
def mvw_register_commands(cli):
    cli.add_command(click.Command(f"co{EVIL}", help=KEPT + EVIL))
"""


@pytest.fixture(scope="module")
def evil_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("evil")
    (folder / "evil.py").write_text(f"EVIL, KEPT = {EVIL!r}, {KEPT!r}\n{PLUGIN}", "utf-8")
    described = escaped(json.dumps(KEPT + EVIL, ensure_ascii=False))  # YAML reads it, too
    (folder / "evil.yaml").write_text(f"adapter: hf\ndescription: {described}\n", "utf-8")
    return plugin_path(folder, "evil")


def obeyed(shown: str) -> list[str]:
    """What of a screen a terminal obeys, but for colours and a line of mvw's own."""
    return re.findall(
        "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2060-\u206f\ufeff]",
        re.sub(r"\x1b\[[0-9;]*[mK]", "", shown),
    )


@pytest.mark.parametrize(
    ("arguments", "stream"),
    [
        (["list", "policies"], "stdout"),
        (["list", "adapters"], "stdout"),
        (["list", "profiles"], "stdout"),
        (["plugins"], "stdout"),
        (["show", "evil"], "stdout"),
        (["--help"], "stdout"),
        (["infer", f"{EVIL}.png", "What?"], "stderr"),
        (["show", "shapes", "--set", f"{EVIL}=1"], "stderr"),
        ([f"--{EVIL}"], "stderr"),
        (["show", "a", EVIL], "stderr"),
    ],
)
def test_no_terminal_obeys_foreign_text(
    arguments: list[str], stream: str, evil_path: str, tmp_path: Path
) -> None:
    env = {"PYTHONPATH": evil_path, "COLUMNS": "300"}
    shown, _ = in_terminal(arguments, stream, tmp_path, **env)
    assert obeyed(shown) == []
    assert "�1A�b�c��" in shown or repr(EVIL)[1:-1] in shown  # it was there
    if stream == "stdout" and "plugins" not in arguments:
        assert KEPT.split()[0] in shown and KEPT.split()[1] in shown


def test_a_document_on_a_terminal_is_clean_and_exact(evil_path: str, tmp_path: Path) -> None:
    for watched in ("stdout", "stderr"):
        streams = in_terminal(
            ["list", "policies", "--json"], watched, tmp_path, PYTHONPATH=evil_path
        )
        text = streams[0 if watched == "stdout" else 1]
        assert obeyed(text) == []
        found = {one["name"]: one["summary"] for one in json.loads(text)["policies"]}
        assert found[f"po{EVIL}"] == KEPT + EVIL


def test_an_error_is_three_lines_whatever_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    console.error("no a\nHint: rm b", "why\nand how", "ls 'a\nb'")
    what, cause, hint = capsys.readouterr().err.splitlines()
    assert (what, cause) == ("Error: no a Hint: rm b", "  why and how")
    quoted = hint.removeprefix("Hint: ls ")
    done = subprocess.run(["bash", "-c", f"printf %s {quoted}"], capture_output=True, text=True)
    assert done.stdout == "a\nb"  # a shell reads the name that it was


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
