"""What can go wrong over vLLM: three lines and an exit code, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from vllm_commands import (
    QUESTION,
    check_same,
    command,
    of_vllm,
    over_vllm,
    records,
    run,
    started,
    told,
    wait_for_end,
    wait_for_records,
    write_folder,
)

from mvw_cli.errors import ExitCode

ITEMS = 60
LONG = ("--max-new-tokens", "160")
"""Answers that are not all there before this process gets to look."""
BLOCK = 3 * 2 * 2 * 32 * 4 * 32
"""Bytes of a block: layers, keys and values, heads, width, bytes of a number, tokens."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("faults"), ITEMS)


def batch(log: str, *settings: str) -> list[str]:
    options = over_vllm("block_size=32", *settings)
    return [*command("batch", "pictures", QUESTION, "-o", log, "--slots", "2"), *LONG, *options]


def test_whatever_ends_a_batch_the_same_command_goes_on(
    folder: Path, check_hint: Callable[[str], None]
) -> None:
    own = run([*command("batch", "pictures", QUESTION, "-o", "own.jsonl"), *LONG], folder)
    assert own.returncode == 0, own.stderr
    words, log = batch("served.jsonl"), folder / "served.jsonl"

    # The process of vLLM's engine is killed: it says nothing, and nothing waits for it.
    with started(words, folder) as process:
        wait_for_records(process, log, 2)
        [core] = of_vllm(process.pid, "VLLM::EngineCore")
        core.send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=300)
    assert process.returncode == ExitCode.FAILURE, err
    what, cause, hint = told(err)
    assert what == "vLLM's engine has ended" and "was killed" in cause
    check_hint(hint)
    kept = records(log)
    assert 2 <= len(kept) < ITEMS
    assert {one["status"] for one in kept.values()} == {"ok"}
    assert "Go on" in err

    # It does not start again: what is there stays.
    before = log.read_bytes()
    refused = run(words, folder, VLLM_PLUGINS="none")
    assert refused.returncode == ExitCode.MODEL, refused.stderr
    what, cause, hint = told(refused.stderr)
    assert what == "vLLM has not loaded mvw's plugin"
    check_hint(hint)
    assert log.read_bytes() == before

    # Ctrl-C, twice: at once, and none of vLLM's processes is left.
    with started(words, folder) as process:
        wait_for_records(process, log, len(kept) + 2)
        theirs = of_vllm(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED, err
    assert theirs
    wait_for_end(theirs)
    left = len(records(log))
    assert left < ITEMS

    # Ctrl-C, once: what is begun is finished.
    with started(words, folder) as process:
        wait_for_records(process, log, left + 2)
        theirs = of_vllm(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=300)
    assert process.returncode == ExitCode.INTERRUPTED, err
    assert "Finishing" in err and "Go on" in err
    wait_for_end(theirs)
    assert left + 2 < len(records(log)) < ITEMS

    again = run(words, folder)
    assert again.returncode == 0, again.stderr
    check_same(folder / "own.jsonl", log, ITEMS)


def test_an_interrupt_while_vllm_starts(folder: Path) -> None:
    with started(batch("early.jsonl"), folder) as process:
        deadline = time.monotonic() + 600
        while not (theirs := of_vllm(process.pid)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "Interrupted." in err
    wait_for_end(theirs)


def test_a_tensor_parallel_process_dies(folder: Path) -> None:
    log = folder / "spread.jsonl"
    with started(batch(log.name, "tensor_parallel_size=2"), folder) as process:
        wait_for_records(process, log, 2)
        theirs = of_vllm(process.pid)
        [second] = of_vllm(process.pid, "VLLM::Worker_TP1")
        second.send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=300)
    assert process.returncode == ExitCode.FAILURE, err
    what, cause, _ = told(err)
    assert what == "vLLM's engine has ended"
    # The other process may notice first that nobody answers it any more, or all end before it is
    # written down what the first one died of.
    known = ("Worker proc VllmWorker-1 died unexpectedly", "Worker failed with", "a process of it")
    assert cause.startswith(known)
    assert {one["status"] for one in records(log).values()} == {"ok"}
    wait_for_end(theirs)


@pytest.mark.parametrize(
    ("settings", "code", "said", "way_out"),
    [
        (("tensor_parallel_size=0",), ExitCode.USAGE, "vLLM refuses tensor_parallel_size", ""),
        (("no_such=1",), ExitCode.USAGE, "vLLM has no argument no_such", ""),
        # One of the four blocks is vLLM's own.
        ((f"kv_cache_memory_bytes={4 * BLOCK}",), ExitCode.OUT_OF_MEMORY, "", "max_model_len=96"),
        (("kv_cache_memory_bytes=1000000000000000",), ExitCode.OUT_OF_MEMORY, "", "kv_cache"),
    ],
)
def test_an_engine_that_can_not_start(
    folder: Path,
    check_hint: Callable[[str], None],
    settings: tuple[str, ...],
    code: int,
    said: str,
    way_out: str,
) -> None:
    options = over_vllm("block_size=32", *settings)
    done = run([*command("infer", "pictures/00.png", QUESTION), *options], folder)
    assert done.returncode == code, done.stderr
    what, cause, hint = told(done.stderr)
    assert (said or "vLLM does not start with model") in what and len(cause) > 20
    assert way_out in hint
    check_hint(hint)


def test_a_pool_that_is_too_small_for_some_and_for_one(folder: Path) -> None:
    """Requests preempt each other, and one that is too long for vLLM fails alone."""
    questions = folder / "questions.jsonl"
    asked = [(f"{number:02}", QUESTION) for number in range(8)]
    asked.insert(3, ("long", "Why? " * 200))
    questions.write_text(
        "".join(
            json.dumps(
                {"id": id, "image": f"pictures/{id}.png".replace("long", "00"), "question": one}
            )
            + "\n"
            for id, one in asked
        )
    )
    asking = ["batch", "--questions", questions.name, "--slots", "8"]
    own = run([*command(*asking, "-o", "own8.jsonl")], folder)
    assert own.returncode == 0, own.stderr
    options = over_vllm("block_size=32", f"kv_cache_memory_bytes={17 * BLOCK}")
    done = run([*command(*asking, "-o", "small.jsonl"), *options], folder)
    assert done.returncode == ExitCode.ITEMS_FAILED, done.stderr
    one, other = records(folder / "own8.jsonl"), records(folder / "small.jsonl")
    failed = other.pop("long")
    assert failed["error"]["type"] == "Refused"
    assert "maximum context length is 512 tokens" in failed["error"]["cause"]
    for id, record in other.items():
        assert (record["status"], record["text"]) == ("ok", one[id]["text"])
    assert len(other) == 8


def test_half_precision_has_its_own_figures(folder: Path) -> None:
    ask = [*command("infer", "pictures/00.png", QUESTION, "--json"), "--dtype", "bfloat16"]
    own, served = run(ask, folder), run([*ask, *over_vllm()], folder)
    assert (own.returncode, served.returncode) == (0, 0), served.stderr
    one, other = json.loads(own.stdout), json.loads(served.stdout)
    assert other["model"]["dtype"] == "bfloat16"
    assert other["withdrawal"] | {"kv_blocks_freed": None} == one["withdrawal"]
    entry = BLOCK // 32 // 2  # two bytes for each number
    assert other["withdrawal"]["kv_bytes_before"] == (other["prompt_tokens"] + 4) * entry
