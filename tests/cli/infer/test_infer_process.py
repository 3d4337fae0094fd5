"""`mvw infer` as a process: what reaches each stream, Ctrl-C, terminals, hostile text."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from processes import Ran

Run = Callable[..., Ran]


def restore_sigint() -> None:
    """In a child: hear SIGINT, also where this suite runs in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


STAGES = "<SUMMARY> I look </SUMMARY> <CONCLUSION> three </CONCLUSION>"
LONG = " ".join(["word"] * 5000)


def test_libraries_do_not_talk_over_the_answer(
    process: Run, picture: Path, tiny: str, plugin_path: str
) -> None:
    options = ("--model", tiny, "--max-new-tokens", "5")
    result = process("infer", str(picture), "w1", *options, HF_HUB_OFFLINE="1")
    assert re.fullmatch(r"(w\d+ ?)+\n", result.out)
    assert len(result.err.splitlines()) == 2  # cut, figures
    assert "\r" not in result.err
    result = process("infer", str(picture), "w1", *options, "-q", "--json", HF_HUB_OFFLINE="1")
    assert json.loads(result.out)["generated_tokens"] == 5
    assert result.err == ""


def test_stages_in_the_document(scripted: Run) -> None:
    found = scripted("--json", "--until", "</SUMMARY>", text=STAGES, remark="Out of my world.")
    document = json.loads(found.out)
    assert document["answer"] == "three"
    assert document["reasoning"] == "I look"
    assert document["stages"] == {"SUMMARY": "I look", "CONCLUSION": "three"}
    assert document["text"] == STAGES
    assert document["finish_reason"] == "eos"
    assert document["withdrawal"]["step"] == 4
    assert document["remarks"] == ["Out of my world."]


def test_remarks_are_one_line_each_and_no_failure(scripted: Run) -> None:
    hostile = "\x1b[31mworld."
    result = scripted(remark=f"Out of\nmy {hostile}", text=f"<CONCLUSION> {hostile} </CONCLUSION>")
    assert result.code == 0
    assert result.err.splitlines()[0] == "Out of my ␛[31mworld."
    assert result.out == f"{hostile}\n"  # a file gets what the model wrote


def test_text_that_was_cut_before_an_answer(scripted: Run) -> None:
    result = scripted("--max-new-tokens", "3", text=STAGES)
    assert (result.code, result.out) == (0, "")
    assert "The text was cut at 3 tokens: --max-new-tokens 6 allows more." in result.err
    assert "The text holds no answer" in result.err


def test_out_of_memory(scripted: Run) -> None:
    result = scripted(out_of_memory=1)
    assert (result.code, result.out) == (5, ""), result.err
    assert result.err.startswith("Error: out of memory")
    assert len(result.err.splitlines()) == 3


def test_a_reader_of_stderr_that_has_gone_does_not_cost_the_answer(
    command: list[str], environment: dict[str, str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*command, "--show-reasoning"],
        env=environment | {"SCRIPT_TEXT": STAGES},
        stdout=subprocess.PIPE,
        stderr=writer,
        timeout=120,
        check=False,
    )
    os.close(writer)
    assert done.stdout == b"three\n"


def test_a_full_disk_behind_stdout_does_not_cost_the_answer(
    command: list[str], environment: dict[str, str]
) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, env=environment, stdout=full, stderr=subprocess.PIPE, timeout=120, check=False
        )
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert lines[-4:] == [
        "3",
        "Error: Cannot write to stdout",
        "  No space left on device; the result is on stderr",
        "Hint: df -h .",
    ]


# --- Ctrl-C ---


def interrupted(
    command: list[str],
    environment: dict[str, str],
    mark: bytes,
    *,
    presses: int = 1,
    delay_s: float = 0,
) -> tuple[int, bytes, bytes, float]:
    """Start, wait for the mark on stderr, press Ctrl-C; return code, streams, seconds to exit."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=restore_sigint,
    )
    assert process.stdout and process.stderr
    try:
        err = _read_until(process.stderr.fileno(), mark)
        time.sleep(delay_s)
        start = time.monotonic()
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
        code = process.wait(timeout=30)
        seconds = time.monotonic() - start
        return code, process.stdout.read(), err + process.stderr.read(), seconds
    finally:
        process.kill()
        process.wait()


def _read_until(descriptor: int, mark: bytes) -> bytes:
    found, deadline = b"", time.monotonic() + 90
    while mark not in found:
        assert time.monotonic() < deadline, found
        if select.select([descriptor], [], [], 1)[0]:
            data = os.read(descriptor, 4096)
            assert data, found
            found += data
    return found


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_while_the_text_is_shown(
    command: list[str], environment: dict[str, str], presses: int
) -> None:
    env = environment | {"SCRIPT_TEXT": LONG, "SCRIPT_PACE_S": "0.05"}
    options = ["--show-reasoning", "--max-new-tokens", "5000"]
    code, out, err, seconds = interrupted([*command, *options], env, b"word word", presses=presses)
    assert (code, out) == (130, b"")
    assert seconds < 5  # the text alone would take minutes
    assert re.fullmatch(rb"word( word)+\nInterrupted\.\n", err) or presses == 2
    assert b"Traceback" not in err


def test_ctrl_c_keeps_a_text_that_was_hidden(
    command: list[str], environment: dict[str, str]
) -> None:
    env = environment | {"SCRIPT_TEXT": LONG, "SCRIPT_PACE_S": "0.05"}
    options = ["--m", "3", "--max-new-tokens", "5000"]
    code, out, err, seconds = interrupted([*command, *options], env, b"withdrawn after token 3")
    assert (code, out) == (130, b"")
    assert seconds < 5  # the text alone would take minutes
    assert re.fullmatch(rb"vision withdrawn .* freed\nword( word)+\nInterrupted\.\n", err)


def test_ctrl_c_deep_inside_pytorch(command: list[str], environment: dict[str, str]) -> None:
    code, _, err, seconds = interrupted(command, environment | {"SCRIPT_BUSY_LOAD": "1"}, b"busy\n")
    assert (code, err) == (130, b"busy\nInterrupted.\n")
    assert seconds < 5


@pytest.mark.parametrize("delay_s", [0.0, 1.0])
def test_ctrl_c_while_importing_and_loading(
    command: list[str], environment: dict[str, str], delay_s: float
) -> None:
    env = environment | {"SCRIPT_BUSY_LOAD": "1"}
    # -v has its say right before PyTorch is imported.
    code, out, err, _ = interrupted([*command, "-v"], env, b"generation.stop", delay_s=delay_s)
    assert (code, out) == (130, b"")
    assert err.endswith(b"Interrupted.\n")
    assert b"Traceback" not in err


def test_ctrl_c_with_a_reader_of_stderr_that_does_not_read(
    command: list[str], environment: dict[str, str]
) -> None:
    # 100 kB of text do not fit into a pipe of 64: the last words must not block for ever.
    text = " ".join(["x" * 50_000, "y" * 50_000, *["word"] * 500])
    process = subprocess.Popen(
        [*command, "--show-reasoning", "--max-new-tokens", "5000"],
        env=environment | {"SCRIPT_TEXT": text},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=restore_sigint,
    )
    assert process.stderr
    try:
        assert select.select([process.stderr], [], [], 90)[0]
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
    finally:
        process.kill()
        process.wait()


def test_an_ignored_sigint_stays_ignored(command: list[str], environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [*command, "--show-reasoning"],
        env=environment | {"SCRIPT_TEXT": "a b c d", "SCRIPT_PACE_S": "0.2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert process.stderr
    _read_until(process.stderr.fileno(), b"a")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"a b c d\n")


# --- on a terminal ---


def on_a_terminal(
    command: list[str], environment: dict[str, str], *, both: bool = True
) -> tuple[str, str]:
    """Run with stderr on a terminal; return what that got, and stdout if it went elsewhere."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=slave,
        stdout=slave if both else subprocess.PIPE,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    shown = b""
    with suppress(OSError):  # EIO: the other end is closed
        while data := os.read(master, 4096):
            shown += data
    out = process.stdout.read() if process.stdout else b""
    assert process.wait(timeout=30) == 0, shown
    os.close(master)
    return shown.decode().replace("\r\n", "\n"), out.decode()


def plain(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


def test_the_view_on_a_terminal(command: list[str], environment: dict[str, str]) -> None:
    shown, out = on_a_terminal(
        [*command, "--m", "3"], environment | {"SCRIPT_TEXT": STAGES}, both=False
    )
    assert out == "three\n"
    first, *later, rest = plain(shown).split("\r\x1b[K")
    assert first == "Loading scripted …"
    assert all(re.fullmatch(r"Loading \S+ …( \d+ s)?", line) for line in later)
    lines = rest.splitlines()
    assert lines[0] == "<SUMMARY> I look"
    assert re.fullmatch(
        r"── vision withdrawn after token 3: 16 vision tokens .* freed ──", lines[1]
    )
    assert lines[2] == "</SUMMARY> <CONCLUSION> three </CONCLUSION>"
    assert lines[3].startswith("TTFT ")
    assert "\x1b[2m" in shown  # dim
    assert len(lines) == 4


def test_loading_is_announced_before_the_heavy_imports(
    command: list[str], environment: dict[str, str]
) -> None:
    code = (
        "import sys; from mvw_cli.cli.infer.view import View; from mvw_cli.__main__ import main;"
        "heavy = ('torch', 'transformers', 'PIL', 'pydantic', 'rich');"
        "View.loading = lambda *a: sys.exit(str([m for m in heavy if m in sys.modules]));"
        "main(sys.argv[1:])"
    )
    spied = [command[0], "-c", code, *command[3:]]
    done = subprocess.run(spied, env=environment, capture_output=True, timeout=60, check=False)
    assert done.stderr == b"[]\n"


def test_escape_sequences_of_the_model_do_not_reach_a_terminal(
    command: list[str], environment: dict[str, str]
) -> None:
    # Sequences over two tokens, in 7 and in 8 bits, and a text turned round.
    answer = "\x1b[2J3 \u202e4 שלום 👩\u200d💻"
    hostile = f"\x1b ]0;owned\x07 \x9b 31m red\x7f <CONCLUSION> {answer} </CONCLUSION>"
    env = environment | {"SCRIPT_TEXT": hostile}
    shown, _ = on_a_terminal(command, env)
    own = plain(shown).replace("\r\x1b[K", "")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", own)
    assert own.rstrip().endswith("␛[2J3 �4 שלום 👩\u200d💻")
    assert own.count("שלום 👩\u200d💻") == 2  # streamed, and the answer


def test_a_pipe_gets_what_the_model_wrote(scripted: Run) -> None:
    answer = "\x1b[2J3 \u202e4 שלום 👩\u200d💻 \x9b31m"
    assert scripted(text=f"<CONCLUSION> {answer} </CONCLUSION>").out == f"{answer}\n"
    document = json.loads(scripted("--json", text=f"<CONCLUSION> {answer} </CONCLUSION>").out)
    assert document["answer"] == answer


def test_standard_input_that_is_a_terminal(
    command: list[str], environment: dict[str, str], picture: Path
) -> None:
    command[command.index(str(picture))] = "-"
    master, slave = pty.openpty()
    done = subprocess.run(
        command, env=environment, stdin=slave, capture_output=True, timeout=60, check=False
    )
    os.close(slave)
    os.close(master)
    assert done.returncode == 2
    assert b"nothing is piped into standard input" in done.stderr
