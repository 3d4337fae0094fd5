"""mvw's commands over vLLM: the same answers and records as with mvw's own engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hub_folder import BY_PROFILE, write_hub_folder
from vllm_checkpoints import write_vllm_checkpoint
from vllm_running import ARGUMENTS, ENVIRONMENT, VLLM_TESTS

from mvw_cli import BadImage
from mvw_cli.vllm.engine import VllmSlots

sys.path.insert(0, str(VLLM_TESTS))
from drive import picture

QUESTION = "What is in the picture?"
SETTINGS = ("kv_cache_memory_bytes=8388608", "enforce_eager=true", "max_model_len=512")
VLLM = ["--engine", "vllm", *(word for one in SETTINGS for word in ("--set", f"engine_args.{one}"))]
ITEMS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and pictures."""
    folder = tmp_path_factory.mktemp("commands")
    write_vllm_checkpoint("llava", folder / "model")
    (folder / "pictures").mkdir()
    for number in range(ITEMS):
        picture(number).save(folder / "pictures" / f"{number:02}.png")
    return folder


def command(*words: str, model: Path) -> list[str]:
    options = ["--model", str(model), "--dtype", "float32", "-m", "5", "--max-new-tokens", "24"]
    return [sys.executable, "-m", "mvw_cli", *words, *options]


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # vLLM's own log is kept apart, as a user has it.
    env = {**os.environ, **ENVIRONMENT}
    del env["VLLM_LOGGING_LEVEL"]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def records(path: Path) -> dict[str, Any]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({one["id"] for one in found}) == len(found)
    return {one["id"]: one for one in found}


def processes() -> set[str]:
    """List the processes of vLLM."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
    return {line for line in found.splitlines() if "VLLM::" in line or "EngineCore" in line}


@pytest.mark.parametrize(("name", "adapter"), [("llava", "hf"), ("kimi-vl", "kimi-vl")])
def test_infer_answers_as_the_own_engine_does(folder: Path, name: str, adapter: str) -> None:
    model = folder / "model"
    if name != "llava":
        model = write_vllm_checkpoint(name, folder / name)
    backend = ARGUMENTS.get(name, {}).get("attention_backend", "CPU_ATTN")
    served_by = [*VLLM, "--set", f"engine_args.attention_backend={backend}"]
    ask = ("infer", "pictures/00.png", QUESTION, "--json", "--adapter", adapter)
    own, served = (run([*command(*ask, model=model), *more], folder) for more in ([], served_by))
    assert (own.returncode, served.returncode) == (0, 0), served.stderr
    one, other = json.loads(own.stdout), json.loads(served.stdout)
    for key in ("text", "finish_reason", "prompt_tokens", "vision_tokens", "vision"):
        assert one[key] == other[key], key
    assert other["withdrawal"] | {"kv_blocks_freed": None} == one["withdrawal"]
    assert one["memory"]["kv_bytes_end"] == other["memory"]["kv_bytes_end"]
    assert other["model"]["attention"] == f"vllm:{backend}"
    assert "WARNING" not in served.stderr and "Traceback" not in served.stderr


def test_a_batch_that_is_killed_goes_on_where_it_was(folder: Path) -> None:
    ask = ("batch", "pictures", QUESTION)
    own = run([*command(*ask, "-o", "own.jsonl", model=folder / "model")], folder)
    assert own.returncode == 0, own.stderr
    words = [*command(*ask, "-o", "served.jsonl", "--slots", "2", model=folder / "model"), *VLLM]
    env = {**os.environ, **ENVIRONMENT}
    before = processes()
    with subprocess.Popen(words, cwd=folder, env=env, stderr=subprocess.DEVNULL) as process:
        log, deadline = folder / "served.jsonl", time.monotonic() + 240
        while not log.exists() or len(log.read_text().splitlines()) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    written = len(log.read_text().splitlines())
    assert written < ITEMS, "it was not killed in the middle"
    deadline = time.monotonic() + 30
    while processes() - before:  # vLLM's processes end with their parent
        assert time.monotonic() < deadline, processes() - before
        time.sleep(0.5)
    again = run(words, folder)
    assert again.returncode == 0, again.stderr
    one, other = records(folder / "own.jsonl"), records(log)
    assert set(one) == set(other) and len(one) == ITEMS
    for name, record in one.items():
        assert record["text"] == other[name]["text"]
        assert record["memory"] == other[name]["memory"]


def test_an_image_that_the_adapter_can_not_read_is_one_images_fault() -> None:
    """It prepares images in vLLM's front end, which says no more than that it failed."""
    refusal = BadImage("An image can't be read by Kimi-VL.", hint="mvw list profiles")

    def add_request(*args: Any) -> None:
        raise ValueError("Failed to apply _Images on data={...}") from refusal

    engine: Any = SimpleNamespace(_pool_bytes=0, sampling=lambda *args: None)
    engine.vllm = SimpleNamespace(add_request=add_request)
    request: Any = SimpleNamespace(id="0", inputs={"input_ids": torch.ones(1, 3)}, images=())
    request.settings = request.policy = None
    with pytest.raises(BadImage, match="can't be read by Kimi-VL"):
        VllmSlots(engine).admit(request)


def test_a_model_that_can_not_be_exact_is_refused(folder: Path) -> None:
    model = write_hub_folder(BY_PROFILE["gemma-3-12b"], folder / "gemma")
    refused = run([*command("infer", "pictures/00.png", QUESTION, model=model), *VLLM], folder)
    assert refused.returncode == 2, refused.stderr
    assert "not exact with sliding windows" in refused.stderr
    assert "Traceback" not in refused.stderr
    hint = refused.stderr.splitlines()[-1]
    assert hint.startswith("Hint: mvw infer") and "--engine mvw" in hint
