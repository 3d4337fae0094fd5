"""`mvw doctor` on faked machines: each line, what it advises, and the exit code."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hints import parse_hint
from processes import Ran

from mvw_cli.doctor.installation import needed_version
from mvw_cli.errors import ExitCode
from mvw_cli.machine import facts as facts_module
from mvw_cli.machine.facts import Facts, Gpu

Run = Callable[..., Ran]
GIB = 2**30
NEEDED = needed_version("transformers")
A100 = Gpu("A100", 80 * GIB, 79 * GIB, True)
T4 = Gpu("T4", 16 * GIB, 15 * GIB, False)
SMALL = Gpu("small", 8 * GIB, 7 * GIB, True)
TINY = Gpu("tiny", 6 * GIB, 11 * GIB // 2, True)
GOOD = Facts(
    python="3.12.1",
    torch="2.9.0",
    torch_problem=None,
    torch_cuda="12.8",
    transformers="5.23.0",
    flash_attn="2.8.1",
    accelerate="1.10.0",
    bitsandbytes="0.48.0",
    gpus=(A100,),
    mps=False,
    driver="570.86.15",
    hub_cache="/somewhere/hub",
    disk_free_bytes=500 * GIB,
    memory_total_bytes=128 * GIB,
    memory_free_bytes=100 * GIB,
)
CPU_ONLY: dict[str, Any] = {"gpus": (), "driver": None, "torch_cuda": None, "flash_attn": None}

APPLE: dict[str, Any] = {**CPU_ONLY, "mps": True, "mps_free_bytes": 8 * GIB}


@pytest.fixture
def doctor(mvw: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Run `mvw doctor --json` on a machine like GOOD, with differences."""

    def run(*arguments: str, **differences: Any) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(facts_module, "gather", lambda: replace(GOOD, **differences))
        ran = mvw("doctor", "--json", *arguments)
        assert ran.err == ""
        assert "NaN" not in ran.out
        document = json.loads(ran.out)
        assert document["schema_version"] == 1
        found = {one["check"]: one for one in document["findings"]}
        for one in found.values():
            assert (one["status"] == "ok") == (one["advice"] is None), one
            if one["advice"] not in (None, "nvidia-smi"):
                parse_hint(one["advice"])
        worst = max(
            (one["status"] for one in found.values()), key=["ok", "warning", "problem"].index
        )
        assert document["status"] == worst
        assert ran.code == (ExitCode.CHECKS_FAILED if worst == "problem" else 0)
        return ran.code, found

    return run


def test_a_good_machine(doctor: Any) -> None:
    code, found = doctor()
    assert code == 0
    assert {one["status"] for one in found.values()} == {"ok"}
    assert found["device"]["found"] == (
        "A100 (79.00 GiB of 80.00 GiB free); CUDA 12.8; driver 570.86.15"
    )
    assert list(found) == [
        "mvw",
        "Python",
        "PyTorch",
        "transformers",
        "device",
        "flash-attn",
        "accelerate",
        "bitsandbytes",
        "disk",
        "memory",
        "plugins",
    ]


def expect(found: dict[str, Any], check: str, status: str, says: str, advises: str | None) -> None:
    assert found[check]["status"] == status, found[check]
    assert says in found[check]["found"]
    assert (advises is None) == (found[check]["advice"] is None)
    assert advises is None or advises in found[check]["advice"]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ({"torch": None}, ("PyTorch", "problem", "not installed", "pip install --upgrade")),
        ({"torch": "2.7.1"}, ("PyTorch", "problem", "2.7.1; mvw needs 2.8 or later", "torch>=2.8")),
        (
            {"torch_problem": "OSError: libcudart.so.12", "gpus": ()},
            ("PyTorch", "problem", "2.9.0 can't be imported: OSError", "--force-reinstall torch"),
        ),
        (
            {"transformers": "5.9.2"},
            ("transformers", "problem", f"needs {NEEDED}", f"rs>={NEEDED}"),
        ),
        (CPU_ONLY, ("device", "warning", "no GPU", "mvw show --cost")),
        (
            {"gpus": (), "torch_cuda": None},
            ("device", "problem", "driver 570.86.15 is there, but this PyTorch is", "pip install"),
        ),
        ({"gpus": ()}, ("device", "problem", "finds no GPU with driver 570.86.15", "nvidia-smi")),
        (APPLE, ("device", "ok", "Apple GPU (MPS, 8.00 GiB free)", None)),
        ({"flash_attn": None}, ("flash-attn", "warning", "runs on SDPA", "mvw[flash]")),
        (
            {**CPU_ONLY, "flash_attn": "2.8"},
            ("flash-attn", "ok", "2.8; of use with a CUDA device only", None),
        ),
        ({"accelerate": None}, ("accelerate", "ok", "needed for device_map", None)),
        ({"disk_free_bytes": 3 * GIB}, ("disk", "warning", "3.00 GiB free for", "hf cache")),
        ({"disk_free_bytes": None}, ("disk", "problem", "no disk at /somewhere/hub", "unset")),
        ({"memory_free_bytes": GIB}, ("memory", "warning", "1.00 GiB of 128.00 GiB", "shapes")),
        ({"memory_free_bytes": None}, ("memory", "ok", "how much is free", None)),
    ],
)
def test_one_thing_is_wrong(doctor: Any, differences: dict[str, Any], expected: Any) -> None:
    code, found = doctor(**differences)
    expect(found, *expected)
    assert code == 20 or expected[1] != "problem"


def test_the_lines(mvw: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "gather", lambda: replace(GOOD, transformers="4.57.0"))
    ran = mvw("doctor")
    assert (ran.code, ran.err) == (20, "")
    header, *lines = ran.out.splitlines()
    assert header.split() == ["CHECK", "STATUS", "FOUND", "WHAT", "TO", "DO"]
    assert any(line.split()[:3] == ["transformers", "problem", "4.57.0;"] for line in lines)


def test_plugins_with_trouble(installed: Run) -> None:
    ran = installed("good,broken", "doctor", "--json")
    found = [one for one in json.loads(ran.out)["findings"] if one["check"] == "plugin"]
    (broken,) = found
    assert broken["status"] == "warning"
    assert "mvw-broken" in broken["found"] and "broken" in broken["found"]
    assert broken["advice"].startswith("pip uninstall")


# -- profiles -----------------------------------------------------------------------------------


def test_a_profile_that_will_run(doctor: Any) -> None:
    code, found = doctor("--profile", "shapes")
    assert code == 0
    assert found["profile"]["found"] == "shapes: embedded"
    assert found["weights"]["found"] == "come with the adapter"
    assert found["profile's device"]["found"] == "cuda (auto)"
    assert found["dtype"]["found"] == "float32 (the checkpoint's)"
    assert found["fit"]["status"] == "ok"


def test_weights_that_are_still_to_be_had(doctor: Any, tmp_path: Path, hub: Path) -> None:
    code, found = doctor("--profile", "qwen2.5-vl-7b")
    assert code == 0
    assert found["weights"]["status"] == "warning"
    assert found["weights"]["found"] == "not on this machine yet: 15.45 GiB to download"
    assert found["weights"]["advice"] == "hf download Qwen/Qwen2.5-VL-7B-Instruct"
    code, found = doctor("--profile", "qwen2.5-vl-7b", disk_free_bytes=10 * GIB)
    assert code == 20
    assert "and 10.00 GiB of disk are free" in found["weights"]["found"]
    assert found["disk"]["status"] == "warning"


@pytest.mark.parametrize(
    ("settings", "differences", "status", "advises"),
    [
        ([], {}, "ok", None),
        ([], {"gpus": (T4,)}, "problem", "2.5-vl-7b --set quantization=8bit"),
        ([], {"gpus": (SMALL,)}, "problem", "2.5-vl-7b --set quantization=4bit"),
        ([], {"gpus": (T4, T4)}, "problem", "2.5-vl-7b --set device_map=auto"),
        (["dtype=float32"], {"gpus": (T4, T4)}, "problem",
         "--set dtype=float16 --set device_map=auto"),
        (["device=cuda:1"], {"gpus": (T4, T4)}, "problem",
         "--set device=auto --set device_map=auto"),
        ([], {"gpus": (TINY, TINY)}, "problem", "--set device_map=auto --set quantization=8bit"),
        ([], {"gpus": (TINY,)}, "problem", "2.5-vl-7b --set device=cpu"),
        (["quantization=4bit"], {"gpus": (TINY,)}, "problem",
         "--set quantization=null --set device=cpu"),
        ([], {"gpus": (TINY,), "memory_free_bytes": 8 * GIB}, "problem", "mvw list profiles"),
        (["dtype=float32"], {"gpus": (Gpu("x", 24 * GIB, 23 * GIB, True),)}, "problem",
         "--profile qwen2.5-vl-7b --set dtype=bfloat16"),
        ([], {"gpus": (Gpu("x", 24 * GIB, 17 * GIB, True),)}, "warning", "=8bit"),
        (["device=cuda:1"], {"gpus": (T4, A100)}, "ok", None),
        (["device=cpu"], {"memory_free_bytes": 2 * GIB}, "problem", "mvw list profiles"),
        (["device_map=auto"], {"gpus": (T4, T4)}, "ok", None),
        (["device_map=auto"], {"gpus": (T4,)}, "warning",
         "--set device_map=auto --set quantization=8bit"),
        (["device_map=auto"], {"gpus": (T4,), "memory_free_bytes": GIB // 2}, "problem", "mvw"),
        ([], APPLE, "problem", "mvw list profiles"),
        ([], {**APPLE, "mps_free_bytes": 20 * GIB}, "ok", None),
        (["dtype=float32"], {**APPLE, "mps_free_bytes": 20 * GIB}, "problem",
         "--profile qwen2.5-vl-7b --set dtype=bfloat16"),
    ],
)  # fmt: skip
def test_whether_it_fits(
    doctor: Any, settings: list[str], differences: dict[str, Any], status: str, advises: str | None
) -> None:
    options = [word for setting in settings for word in ("--set", setting)]
    _, found = doctor("--profile", "qwen2.5-vl-7b", *options, **differences)
    dtype = "float32" if "dtype=float32" in settings else "bfloat16"
    dtype += " and 4bit" if "quantization=4bit" in settings else ""
    what = f"weights in {dtype} and the cache of an image and 512 tokens"
    expect(found, "fit", status, what, advises)


def test_the_bytes_that_must_fit(doctor: Any) -> None:
    _, found = doctor("--profile", "qwen2.5-vl-7b")
    weights, cache = 2 * 8292166656, (512 + 27 * 37) * 2 * 28 * 4 * 128 * 2
    assert found["fit"]["found"].startswith(f"{(weights + cache) / GIB:.2f} GiB needed")


@pytest.mark.parametrize(
    ("settings", "differences", "check", "status", "says", "advises"),
    [
        (["device=cuda"], CPU_ONLY, "profile's device", "problem", "sees 0 CUDA", "device=auto"),
        (["device=mps"], {}, "profile's device", "problem", "mps is not there", "device=auto"),
        (["attention=flash"], {"flash_attn": None}, "attention", "problem", "not installed",
         "mvw[flash]"),
        (["attention=flash"], CPU_ONLY, "attention", "problem", "needs a CUDA", "attention=auto"),
        (["attention=flash"], {"gpus": (T4,)}, "attention", "problem", "8.0 or later, T4 is older",
         "attention=auto"),
        (["attention=flash", "dtype=float32"], {}, "dtype", "problem", "float16 or bfloat16",
         "dtype=bfloat16"),
        ([], {"gpus": (T4,)}, "dtype", "warning", "T4 emulates it", "dtype=float16"),
        (["dtype=float16"], CPU_ONLY, "dtype", "warning", "slow on a CPU", "dtype=bfloat16"),
        (["quantization=4bit"], CPU_ONLY, "placement", "problem", "needs a CUDA device",
         "mvw doctor --profile qwen2.5-vl-7b --set quantization=null"),
        (["quantization=4bit"], {"bitsandbytes": None}, "placement", "problem",
         "needs accelerate and bitsandbytes", "mvw[quantization]"),
        (["device_map=auto"], {"accelerate": None}, "placement", "problem", "needs accelerate",
         "mvw[multi-gpu]"),
        (["device_map=auto"], {}, "placement", "ok", "device_map: auto", None),
        (["device_map=auto", "device=cpu"], {}, "profile", "problem", "contradict", "mvw"),
        (["withdrawal.policy=nothing"], {}, "profile", "problem", "no policy `nothing`",
         "mvw list policies"),
        (["model=./none"], {}, "weights", "problem", "There is no folder ./none",
         "mvw list profiles"),
        (["model=./none"], {}, "size", "warning", "not known", "mvw"),
    ],
)  # fmt: skip
def test_what_a_profile_asks_for(
    doctor: Any,
    settings: list[str],
    differences: dict[str, Any],
    check: str,
    status: str,
    says: str,
    advises: str | None,
) -> None:
    options = [word for setting in settings for word in ("--set", setting)]
    _, found = doctor("--profile", "qwen2.5-vl-7b", *options, **differences)
    expect(found, check, status, says, advises)


def test_a_profile_that_there_is_not(doctor: Any) -> None:
    code, found = doctor("--profile", "nothing")
    assert code == 20
    assert found["profile"]["found"].startswith("there is no profile `nothing`")
    assert found["profile"]["advice"] == "mvw list profiles"
    assert "weights" not in found


# -- the engine against its oracle ----------------------------------------------------------------


@pytest.mark.parametrize("profile", ["shapes", "qwen2.5-vl-7b", "llava-cot"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_equivalence(mvw: Run, profile: str, kernel: str) -> None:
    chosen = ("--profile", profile, "--set", f"attention={kernel}", "--set", "device=cpu")
    document = json.loads(mvw("doctor", "--equivalence", "--json", *chosen).out)
    (finding,) = (one for one in document["findings"] if one["check"] == "equivalence")
    figures = document["equivalence"]
    assert finding["status"] == "ok", finding
    assert 0 <= figures["difference"] <= figures["tolerance"] < figures["effect"]
    assert (figures["attention"], figures["device"]) == (kernel, "cpu")
    assert f"differ by {figures['difference']:.1e} at most" in finding["found"]


def test_an_engine_that_withdraws_nothing_is_caught(
    mvw: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mvw_cli.engine.cache import SlotCache

    monkeypatch.setattr(SlotCache, "withdraw", lambda *args, **kwargs: 0)
    ran = mvw("doctor", "--equivalence", "--json", "--set", "device=cpu", "--set", "adapter=shapes")
    document = json.loads(ran.out)
    finding = document["findings"][-1]
    assert (ran.code, document["status"]) == (20, "problem")
    assert (finding["check"], finding["status"]) == ("equivalence", "problem")
    assert document["equivalence"]["difference"] > 100 * document["equivalence"]["tolerance"]
    parse_hint(finding["advice"])


def test_equivalence_on_a_device_that_is_not_there(doctor: Any) -> None:
    _, found = doctor("--equivalence", "--profile", "shapes", "--set", "device=cuda:3", **CPU_ONLY)
    assert found["equivalence"]["status"] == "warning"
    assert found["equivalence"]["found"].startswith("not run: cuda:3 is not there")


def test_equivalence_with_flash_is_not_claimed(doctor: Any) -> None:
    options = ("--profile", "shapes", "--set", "attention=flash", "--set", "device=cpu")
    _, found = doctor("--equivalence", *options, **CPU_ONLY)
    assert found["equivalence"]["status"] == "warning"
    assert found["equivalence"]["found"].startswith("not run with flash: ")
    assert "flash-attn is not installed" in found["equivalence"]["found"]
    assert found["equivalence"]["advice"] == (
        "mvw doctor --equivalence --profile shapes --set device=cpu --set attention=sdpa"
    )


@pytest.mark.parametrize(
    ("difference", "effect", "status"),
    [(1e-7, 0.5, "ok"), (2e-5, 0.5, "problem"), (float("nan"), 0.5, "problem"),
     (1e-7, 1e-4, "warning")],
)  # fmt: skip
def test_how_a_comparison_is_judged(
    doctor: Any, monkeypatch: pytest.MonkeyPatch, difference: float, effect: float, status: str
) -> None:
    from mvw_cli.doctor import exactness
    from mvw_cli.oracle.equivalence import Equivalence

    figures = Equivalence(difference, 1e-5, effect, 12, 16, 3, "sdpa", "cpu", "float32")
    monkeypatch.setattr(exactness, "equivalence", lambda *args, **options: figures)
    _, found = doctor("--equivalence", "--profile", "shapes", **CPU_ONLY)
    assert found["equivalence"]["status"] == status


# -- weights in a folder or in the cache ----------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty hub cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The tiny LLaVA in several shards."""
    from mvw_hf.tiny import tiny_llava

    model, processor = tiny_llava()
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder, max_shard_size="20KB")
    processor.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def weights_of(doctor: Any, folder: Path) -> dict[str, Any]:
    _, found = doctor("--set", f"model={folder}", "--set", "adapter=hf")
    return found["weights"]  # type: ignore[no-any-return]


def test_a_shard_is_missing(doctor: Any, checkpoint: Path) -> None:
    shards = sorted(checkpoint.glob("*.safetensors"))
    finding = weights_of(doctor, checkpoint)
    assert finding["status"] == "ok"
    assert finding["found"].startswith(f"{len(shards)} files, ")
    gone = shards[1]
    gone.unlink()
    finding = weights_of(doctor, checkpoint)
    assert finding["status"] == "problem"
    missing = f"1 of {len(shards)} files of weights missing: {gone.name}."
    assert finding["found"] == f"{checkpoint} is incomplete: {missing}"


@pytest.mark.parametrize("how", ["cut", "empty", "text"])
def test_a_shard_is_damaged(doctor: Any, checkpoint: Path, how: str) -> None:
    shard = sorted(checkpoint.glob("*.safetensors"))[-1]
    data = shard.read_bytes()
    shard.write_bytes({"cut": data[:-1], "empty": b"", "text": b"version https://x\n" * 9}[how])
    finding = weights_of(doctor, checkpoint)
    assert finding["status"] == "problem"
    damaged = f"{shard.name} is cut, or no safetensors file."
    assert finding["found"] == f"{checkpoint} is damaged: {damaged}"


def test_only_pickled_weights(doctor: Any, checkpoint: Path) -> None:
    for path in [*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.index.json")]:
        path.unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"x")
    finding = weights_of(doctor, checkpoint)
    assert finding["status"] == "problem"
    assert finding["found"].startswith(f"{checkpoint} has no weights as safetensors: Pickled")
    assert finding["advice"] == (
        f"mvw infer IMAGE QUESTION --set model={checkpoint} --set adapter=hf --allow-pickle"
    )


def test_a_model_in_the_cache(doctor: Any, checkpoint: Path, hub: Path) -> None:
    commit = "0" * 40
    kept = hub / "models--some-org--tiny"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    (kept / "snapshots").mkdir()
    checkpoint.rename(kept / "snapshots" / commit)
    _, found = doctor("--set", "model=some-org/tiny")
    assert found["weights"]["status"] == "ok"
    next((kept / "snapshots" / commit).glob("*.safetensors")).unlink()
    _, found = doctor("--set", "model=some-org/tiny")
    assert found["weights"]["status"] == "problem"
    assert found["weights"]["advice"] == "hf download some-org/tiny"


def test_the_advice_keeps_what_was_given(doctor: Any) -> None:
    given = ("model=Qwen/Qwen2.5-VL-7B-Instruct", "dtype=float32", "generation.stop=[a, b]")
    options = [word for one in given for word in ("--set", one)]
    _, found = doctor(*options, gpus=(Gpu("x", 24 * GIB, 23 * GIB, True),))
    assert shlex.split(found["fit"]["advice"]) == [
        "mvw", "doctor", "--set", "model=Qwen/Qwen2.5-VL-7B-Instruct", "--set", "dtype=bfloat16",
        "--set", 'generation.stop=["a", "b"]',
    ]  # fmt: skip
