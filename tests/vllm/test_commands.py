"""mvw's commands over vLLM: the same answers and records as with mvw's own engine."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hub_folder import BY_PROFILE, write_hub_folder
from PIL import Image
from vllm_checkpoints import write_vllm_checkpoint
from vllm_commands import (
    PICTURES,
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
from vllm_running import ARGUMENTS

from mvw_cli import BadImage
from mvw_cli.errors import ExitCode
from mvw_cli.vllm.engine import VllmEngine, VllmSlots

VLLM = over_vllm()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and pictures."""
    return write_folder(tmp_path_factory.mktemp("commands"))


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
    # Answers so long that not all are there before this process gets to look.
    ask, long = ("batch", "pictures", QUESTION), ("--max-new-tokens", "160")
    own = run([*command(*ask, "-o", "own.jsonl"), *long], folder)
    assert own.returncode == 0, own.stderr
    words, log = (
        [*command(*ask, "-o", "served.jsonl", "--slots", "2"), *long, *VLLM],
        folder / "served.jsonl",
    )
    with started(words, folder) as process:
        wait_for_records(process, log, 2)
        process.send_signal(signal.SIGSTOP)  # nothing more is written from here on
        theirs = of_vllm(process.pid)
        process.send_signal(signal.SIGKILL)
    assert len(records(log)) < PICTURES, "it was not killed in the middle"
    assert theirs
    wait_for_end(theirs)  # with their parent
    again = run(words, folder)
    assert again.returncode == 0, again.stderr
    check_same(folder / "own.jsonl", log, PICTURES)


def test_an_image_that_the_adapter_can_not_read_is_one_images_fault() -> None:
    """It prepares images in vLLM's front end, which says no more than that it failed."""
    refusal = BadImage("An image can't be read by Kimi-VL.", hint="mvw list profiles")

    def add_request(*args: Any) -> None:
        raise ValueError("Failed to apply _Images on data={...}") from refusal

    engine: Any = VllmEngine.__new__(VllmEngine)
    engine.sampling = lambda *args: None
    engine._pool_bytes, engine.vllm = 0, SimpleNamespace(add_request=add_request)
    request: Any = SimpleNamespace(id="0", inputs={"input_ids": torch.ones(1, 3)}, images=())
    request.settings = request.policy = None
    with pytest.raises(BadImage, match="can't be read by Kimi-VL"):
        VllmSlots(engine).admit(request)


def test_images_that_the_processor_refuses_end_a_batch_as_on_the_own_engine(
    folder: Path, check_hint: Callable[[str], None]
) -> None:
    model = write_vllm_checkpoint("qwen2.5-vl", folder / "qwen2.5-vl")
    (folder / "thin").mkdir()
    for number in range(25):
        Image.new("RGB", (3000, 2), (number, 0, 0)).save(folder / "thin" / f"{number:02}.png")
    said = []
    for log, more in (("own-thin.jsonl", []), ("thin.jsonl", VLLM)):
        ended = run([*command("batch", "thin", QUESTION, "-o", log, model=model), *more], folder)
        assert ended.returncode == ExitCode.ITEMS_FAILED, ended.stderr
        assert len(records(folder / log)) < 25
        said.append(told(ended.stderr))
        check_hint(said[-1][2])
    assert said[0] == said[1]
    assert "takes no image of 3000 x 2 pixels" in said[1][0]
    assert "absolute aspect ratio must be smaller than 200" in said[1][1]


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        ("gemma-3-12b", "withdrawal in vLLM is not exact with sliding windows"),
        ("llava-cot", "vLLM does not have MllamaForConditionalGeneration"),
    ],
)
def test_a_model_that_is_not_for_vllm_is_refused(folder: Path, profile: str, why: str) -> None:
    model = write_hub_folder(BY_PROFILE[profile], folder / profile, weights=False)
    refused = run([*command("infer", "pictures/00.png", QUESTION, model=model), *VLLM], folder)
    assert refused.returncode == 2, refused.stderr
    what, cause, hint = told(refused.stderr)
    assert (what, cause[: len(why)]) == ("vLLM can't serve this profile", why)
    assert hint.startswith("mvw infer") and "--engine mvw" in hint


def test_eval_has_the_same_answers_under_each_arm(folder: Path) -> None:
    """Also without images; an engine that can't change its withdrawal is started for each arm."""
    lines = [
        {"id": str(n), "image": f"pictures/{n:02}.png", "question": QUESTION, "answer": "x"}
        for n in range(2)
    ]
    (folder / "asked.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    ask = ("eval", "asked.jsonl", "--no-image", "--max-new-tokens", "12")
    found = []
    for name, more in (("own", []), ("served", VLLM)):
        done = run([*command(*ask, "-o", name), *more], folder)
        assert done.returncode == 0, done.stderr
        items = (folder / name / "items.jsonl").read_text().splitlines()
        found.append([json.loads(line)["arms"] for line in items])
    assert found[0] == found[1]
    assert len(found[0]) == 2 and {"never", "m=5", "no image"} == found[0][0].keys()
    assert all(told["status"] == "ok" for arms in found[0] for told in arms.values())
