"""`mvw profile` and `mvw doctor` over vLLM itself: figures and the oracle, on a real engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from vllm_checkpoints import write_vllm_checkpoint
from vllm_running import ENVIRONMENT, VLLM_TESTS

from mvw_cli.plugins import load_adapter
from mvw_cli.profiles.resolution import model_spec, resolve
from mvw_cli.vllm import start

sys.path.insert(0, str(VLLM_TESTS))
from drive import picture

SMALL = ("kv_cache_memory_bytes=16777216", "enforce_eager=true")
VISION, BLOCK = 81, 32


def mvw(
    *words: str, folder: Path, code: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    options = [word for one in SMALL for word in ("--set", f"engine_args.{one}")]
    entry = ["-m", "mvw_cli"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *entry, *words, "--engine", "vllm", *options],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=580,
    )


def test_a_profile_has_the_figures_of_vllm(tmp_path: Path) -> None:
    write_vllm_checkpoint("llava", tmp_path / "model")
    picture(0).save(tmp_path / "0.png")
    words = ["0.png", "What?", "--model", "model", "--dtype", "float32", "--m", "5"]
    words += ["--until", "never written", "--batch", "1,3", "--new-tokens", "9", "--runs", "1"]
    words += ["--min-time", "0", "--set", f"engine_args.block_size={BLOCK}", "-o", "report.json"]
    done = mvw("profile", *words, "--set", "engine_args.max_model_len=512", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "No attention to the image is shown: vLLM does not give" in done.stderr
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    assert report["model"]["attention"] == "vllm:CPU_ATTN"
    assert report["environment"]["vllm"].startswith("0.")
    assert report["workload"]["vision_tokens"] == VISION
    prompt = report["workload"]["prompt_tokens"]
    one = 3 * 2 * 2 * 32 * 4  # layers, keys and values, heads, width, bytes of a float32
    for batch, cell in zip((1, 3), report["cells"], strict=True):
        assert (cell["batch"], cell["ended"], cell["device_busy"]) == (batch, None, None)
        base, m5, never = cell["arms"]
        assert [arm["name"] for arm in cell["arms"]] == ["baseline", "m=5", "until never written"]
        assert [arm["withdrawn_after"] for arm in cell["arms"]] == [None, 5, None]
        memory = m5["memory"]
        assert memory["kv_bytes_before"] == batch * (prompt + 4) * one
        assert memory["kv_bytes_after"] == batch * (prompt + 4 - VISION) * one
        held = -(-(prompt + 4) // BLOCK) - -(-(prompt + 4 - VISION) // BLOCK)
        assert memory["kv_blocks_freed"] == batch * held > 0
        assert base["memory"]["kv_blocks_freed"] is None
        for arm in (base, m5, never):
            assert arm["memory"]["weight_bytes"] is arm["memory"]["process_peak_bytes"] is None
            assert arm["phases"]["withdrawal_ms"] is None
            assert arm["ttft_ms"]["median"] > 0 and arm["tokens_per_s"]["median"] > 0
            assert arm["generated_tokens"]["samples"] == [9.0] * batch
        assert m5["tpot_after_ms"] is not None and base["tpot_after_ms"] is None
        assert set(m5["ratios"]) == {"ttft", "answer", "tpot", "tokens_per_s"}
    answers = report["answers"]
    assert [arm["name"] for arm in answers["arms"]][:2] == ["baseline", "m=5"]
    assert all(arm["agreement"] is None for arm in answers["arms"])
    assert "vLLM does not give its logits" in " ".join(answers["remarks"])
    never = next(arm for arm in answers["arms"] if arm["name"] == "until never written")
    assert never["identical"] == 1
    assert report["attention"] is None


LATE = """
import dataclasses, sys
from mvw_cli.__main__ import main
from mvw_cli.vllm.plugin import touchpoints

plain = touchpoints.asked_of

def late(*given):
    asked = plain(*given)
    return dataclasses.replace(asked, boundary=asked.boundary + 1)

touchpoints.asked_of = late
sys.exit(main(sys.argv[1:]))
"""
"""A plugin that withdraws one token late; in the process that schedules."""


@pytest.mark.parametrize("fault", [False, True])
def test_doctor_holds_vllm_against_the_oracle(tmp_path: Path, fault: bool) -> None:
    done = mvw(
        *("doctor", "--equivalence", "--json"),
        folder=tmp_path,
        code=LATE if fault else None,
        VLLM_ENABLE_V1_MULTIPROCESSING="0" if fault else "1",
    )
    document: dict[str, Any] = json.loads(done.stdout)
    found = {one["check"]: one for one in document["findings"]}
    for check in ("vLLM", "vLLM plugin", "vLLM platform", "vLLM attention"):
        assert found[check]["status"] == "ok", found[check]
    figures = document["equivalence"]
    assert (figures["attention"], figures["dtype"]) == ("vllm:CPU_ATTN", "float32")
    assert figures["tokens"] == 48 and figures["vision_tokens"] == 144
    assert figures["effect"] > 100 * figures["tolerance"]
    assert (figures["difference"] > 100 * figures["tolerance"]) == fault
    assert found["equivalence"]["status"] == ("problem" if fault else "ok")
    if fault:
        assert done.returncode == 20


@pytest.mark.parametrize(
    ("profile", "refused"),
    [
        ("qwen2.5-vl-7b", None),
        ("qwen3-vl-8b-thinking", None),
        ("kimi-vl", None),
        ("llava-cot", "vLLM does not have MllamaForConditionalGeneration"),
        ("gemma-3-12b", "withdrawal in vLLM is not exact with sliding windows"),
    ],
)
def test_models_whose_configuration_is_known_by_heart(profile: str, refused: str | None) -> None:
    chosen = resolve(profile, {}, {}).profile
    config = load_adapter(chosen.adapter).shape(model_spec(chosen))
    assert config.architectures is None
    said = start.unsupported(config)
    assert said is None if refused is None else said is not None and said.startswith(refused)


def test_an_interrupt_leaves_a_report_of_what_was_measured(tmp_path: Path) -> None:
    """As a terminal sends it: to all processes of the group."""
    write_vllm_checkpoint("llava", tmp_path / "model")
    picture(0).save(tmp_path / "0.png")
    words = ["profile", "0.png", "What?", "--model", "model", "--dtype", "float32", "--m", "5"]
    words += ["--new-tokens", "16", "--runs", "100000", "--warmup", "0", "-o", "report.json"]
    options = [word for one in SMALL for word in ("--set", f"engine_args.{one}")]
    log = (tmp_path / "stderr").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "mvw_cli", *words, "--engine", "vllm", *options, "--no-answers"],
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # else: as of a shell's &
    )
    try:
        deadline = time.monotonic() + 300
        while "Measuring batch" not in (tmp_path / "stderr").read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        time.sleep(8)
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(timeout=200)
    finally:
        process.kill()
    said = (tmp_path / "stderr").read_text()
    assert code == 130, said
    assert "Interrupted: the report holds what was measured until then." in said
    [cell] = json.loads((tmp_path / "report.json").read_text())["cells"]
    assert cell["ended"] is None and cell["pairs"] >= 1
