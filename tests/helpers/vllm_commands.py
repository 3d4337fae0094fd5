"""Run mvw's commands over vLLM in processes of their own, and look at what they leave."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil  # comes with vLLM
from vllm_checkpoints import write_vllm_checkpoint
from vllm_running import ENVIRONMENT, VLLM_TESTS

QUESTION = "What is in the picture?"
SETTINGS = ("enforce_eager=true", "max_model_len=512")
PICTURES = 12


def write_folder(folder: Path, pictures: int = PICTURES) -> Path:
    """Write a checkpoint, and pictures that differ."""
    sys.path.insert(0, str(VLLM_TESTS))
    from drive import picture

    model = write_vllm_checkpoint("llava", folder / "model")
    # vLLM ends at the tokenizer's end token, transformers at that of this file.
    eos = json.loads((model / "config.json").read_text())["text_config"]["eos_token_id"]
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    (folder / "pictures").mkdir()
    for number in range(pictures):
        picture(number).save(folder / "pictures" / f"{number:02}.png")
    return folder


def over_vllm(*settings: str) -> list[str]:
    """List the options that take vLLM, a small one unless the settings say otherwise."""
    pool = () if any("kv_cache" in one for one in settings) else ("kv_cache_memory_bytes=8388608",)
    given = (*SETTINGS, *pool, *settings)
    return ["--engine", "vllm", *(w for one in given for w in ("--set", f"engine_args.{one}"))]


def command(*words: str, model: Path | str = "model") -> list[str]:
    """Write a command of `mvw` that withdraws after 5 tokens."""
    options = ["--model", str(model), "--dtype", "float32", "-m", "5", "--max-new-tokens", "24"]
    return [sys.executable, "-m", "mvw_cli", *words, *options]


def environment(**more: str) -> dict[str, str]:
    """The environment of a user: vLLM's own log is kept apart."""
    env = {**os.environ, **ENVIRONMENT}
    del env["VLLM_LOGGING_LEVEL"]
    return env | more


def run(words: list[str], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        words, cwd=folder, env=environment(**env), capture_output=True, text=True, timeout=900
    )


@contextmanager
def started(words: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a command as a terminal does, in a group of processes of its own."""
    process = subprocess.Popen(
        words,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_records(process: subprocess.Popen[str], log: Path, count: int) -> None:
    """Wait until so many records are written, all of which could not be yet."""
    deadline = time.monotonic() + 600
    while not log.exists() or log.read_bytes().count(b"\n") < count:
        if process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        assert time.monotonic() < deadline
        time.sleep(0.01)


def of_vllm(pid: int, name: str = "VLLM::") -> list[psutil.Process]:
    """List the processes of vLLM below another, by the names that they give themselves."""
    found = []
    for one in psutil.Process(pid).children(recursive=True):
        try:
            if " ".join(one.cmdline()).startswith(name):
                found.append(one)
        except psutil.Error:
            continue
    return found


def wait_for_end(processes: list[psutil.Process]) -> None:
    """Wait until processes have ended."""
    _, left = psutil.wait_procs(processes, timeout=120)
    assert not left, left


def records(log: Path) -> dict[str, Any]:
    """Read a log, which has to have one record for each item."""
    found = [json.loads(line) for line in log.read_text().splitlines()]
    assert len({one["id"] for one in found}) == len(found)
    return {one["id"]: one for one in found}


def check_same(one: Path, other: Path, items: int) -> None:
    """See that two logs say the same of all items."""
    first, second = records(one), records(other)
    assert set(first) == set(second) and len(first) == items
    for name, record in first.items():
        assert record["status"] == second[name]["status"] == "ok"
        assert record["text"] == second[name]["text"]
        assert record["memory"] == second[name]["memory"]


def told(err: str) -> tuple[str, str, str]:
    """Return what, why and the hint of the one error that was told."""
    assert "Traceback" not in err
    [found] = re.findall(r"^Error: (.*)\n  (.*)\nHint: (.*)$", err, re.M)
    return found
