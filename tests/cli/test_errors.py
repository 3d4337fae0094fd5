"""Errors at the edge of the process: messages, exit codes, tracebacks, signals, closed pipes."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from processes import Ran

from mvw_cli.__main__ import main
from mvw_cli.cli import cli
from mvw_cli.errors import (
    BadImage,
    ExitCode,
    ModelProblem,
    MvwError,
    OutOfMemory,
    PluginProblem,
    UsageProblem,
)

Run = Callable[..., Ran]


@pytest.fixture
def failing(
    mvw: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ran]]:
    """Run a command that raises something."""

    def run(error: BaseException, *options: str) -> Ran:
        @click.command("fail")
        def fail() -> None:
            raise error

        cli.add_command(fail)
        capsys.readouterr()
        code = main([*options, "fail"])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    yield run
    cli.commands.pop("fail", None)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (MvwError, 1),
        (UsageProblem, 2),
        (PluginProblem, 4),
        (OutOfMemory, 5),
        (BadImage, 6),
        (ModelProblem, 7),
    ],
)
def test_each_error_has_its_exit_code(
    failing: Callable[..., Ran], kind: type[MvwError], code: int
) -> None:
    ran = failing(kind("what", cause="why", hint="mvw list adapters"))
    assert ran == Ran(code, "", "Error: what\n  why\nHint: mvw list adapters\n")


def test_cause_and_hint_may_be_missing(failing: Callable[..., Ran]) -> None:
    assert failing(MvwError("what")).err == "Error: what\n"


def test_debug_shows_the_traceback_before_the_message(
    failing: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = failing(ModelProblem("what"), "--debug")
    assert ran.err.startswith("Traceback (most recent call last):\n")
    assert ran.err.endswith("Error: what\n")
    monkeypatch.setenv("MVW_DEBUG", "1")
    assert "Traceback" in failing(ModelProblem("what")).err
    for value in ("0", "false", "off", ""):
        monkeypatch.setenv("MVW_DEBUG", value)
        assert "Traceback" not in failing(ModelProblem("what")).err


@pytest.mark.parametrize("name", ["MVW_DEBUG", "MVW_OFFLINE"])
def test_a_switch_that_is_neither_on_nor_off_is_refused(
    mvw: Run, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "maybe")
    ran = mvw("infer", "no.png", "What?")
    assert (ran.code, ran.out) == (ExitCode.USAGE, "")
    assert f"env var: '{name}'" in ran.err and "'maybe' is not a valid boolean" in ran.err


def test_the_unexpected_is_one_message_with_the_command_to_repeat(
    failing: Callable[..., Ran],
) -> None:
    ran = failing(KeyError("two\nlines"))
    assert ran.code == ExitCode.FAILURE
    assert ran.err == (
        "Error: unexpected KeyError: 'two\\nlines'\n"
        "  this is a fault in mvw or in a plugin; re-run with --debug to see where\n"
        "Hint: mvw --debug fail\n"
    )
    assert "Traceback" in failing(KeyError("x"), "--debug").err


def test_what_the_system_refuses_is_no_fault_in_mvw(failing: Callable[..., Ran]) -> None:
    ran = failing(PermissionError(errno.EACCES, "Permission denied", "a b/x.json"))
    assert (
        ran.err == "Error: Cannot use a b/x.json\n  Permission denied\nHint: ls -ld 'a b/x.json'\n"
    )
    ran = failing(OSError(errno.EMFILE, "Too many open files"))
    assert ran.err == "Error: Cannot use .\n  Too many open files\nHint: ulimit -n\n"


def test_an_error_is_three_lines_whatever_is_in_it(failing: Callable[..., Ran]) -> None:
    long = UsageProblem("a\nb" + "c" * 5000 + "d", cause="e\nf", hint=shlex.join(["ls", "a\nb"]))
    error, cause, hint = failing(long).err.splitlines()
    assert error.startswith("Error: a bccc") and error.endswith("cccd") and len(error) < 1000
    assert cause == "  e f"
    done = subprocess.run(
        ["bash", "-c", hint.removeprefix("Hint: ").replace("ls", "printf %s")], capture_output=True
    )
    assert done.stdout == b"a\nb"


def test_ctrl_c_is_130(failing: Callable[..., Ran]) -> None:
    ran = failing(KeyboardInterrupt())
    assert (ran.code, ran.out) == (130, "")
    assert ran.err.strip() == "Interrupted."


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "mvw_cli", "list", "adapters"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (ExitCode.FAILURE, "")


@pytest.mark.parametrize("arguments", ["list adapters", "show no-such-profile"])
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_closed_streams_are_no_crash(tmp_path: Path, arguments: str, closed: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m mvw_cli {arguments} {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == (2 if "no-such" in arguments else 0)
    assert "Traceback" not in done.stdout + done.stderr


def test_a_terminal_that_can_not_show_a_character(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("adapter: shapes\ndescription: ◁think▷\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mvw_cli", "show", "x.yaml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0
    assert "\\u25c1think\\u25b7" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("lst", "Error: No such command 'lst'. Did you mean 'list'?"),
        ("list adaptors", "Error: No such command 'adaptors'. Did you mean 'adapters'?"),
        ("list adapters --jsn", "Error: No such option '--jsn'. Did you mean '--json'?"),
        ("show a b", "Error: Got unexpected extra argument (b)"),
    ],
)
def test_wrong_usage(mvw: Run, arguments: str, message: str) -> None:
    ran = mvw(*shlex.split(arguments))
    assert (ran.code, ran.out) == (ExitCode.USAGE, "")
    assert ran.err.startswith("Usage: mvw ")
    assert ran.err.splitlines()[-1] == message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("arguments", [["--version"], ["list", "adapters"], ["--help"]])
def test_a_full_disk_is_no_fault_of_ours(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "mvw_cli", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "no space is left" in done.stderr
    assert "fault" not in done.stderr and "Traceback" not in done.stderr


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    command = [sys.executable, "-m", "mvw_cli", "infer", "a\x1b[31m.png", "What?"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 6
    assert "\x1b" not in done.stderr


def test_a_real_interrupt(tmp_path: Path) -> None:
    code = (
        "import click, sys, time\n"
        "from mvw_cli.cli import cli\n"
        "from mvw_cli.__main__ import main\n"
        "@cli.command()\n"
        "def wait():\n"
        "    click.echo('waiting'); sys.stdout.flush(); time.sleep(60)\n"
        "sys.exit(main(['wait']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "Interrupted."
