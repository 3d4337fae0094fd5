"""What `mvw doctor` finds out about a machine: this one, and a few made-up parts of others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mvw_cli.doctor.installation import needed_version, older
from mvw_cli.machine import facts


def test_this_machine() -> None:
    import transformers

    seen = facts.gather()
    assert seen.torch == torch.__version__
    assert seen.transformers == transformers.__version__
    assert seen.torch_problem is None
    assert len(seen.gpus) == torch.cuda.device_count()
    assert seen.python.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert seen.memory_total_bytes is not None and seen.memory_total_bytes > 2**28
    assert seen.memory_free_bytes is None or seen.memory_free_bytes <= seen.memory_total_bytes
    assert seen.disk_free_bytes is not None and seen.disk_free_bytes >= 0


def test_a_torch_that_can_not_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    seen = facts.gather()
    assert seen.torch_problem is not None
    assert seen.torch_problem.startswith("ModuleNotFoundError: ")
    assert (seen.gpus, seen.mps, seen.torch_cuda) == ((), False, None)


def test_gpus_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {
        "device_count": lambda: 2,
        "mem_get_info": lambda index: (10 + index, 20),
        "get_device_capability": lambda index: (7, 5) if index == 0 else (8, 0),
        "get_device_name": lambda index: f"GPU {index}",
    }
    for name, function in made.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(torch.version, "hip", None)
    assert facts.gather().gpus == (
        facts.Gpu("GPU 0", 20, 10, False),
        facts.Gpu("GPU 1", 20, 11, True),
    )


@pytest.mark.parametrize(
    ("script", "driver"),
    [("echo 570.1", "570.1"), ("echo no; exit 9", None), ("true", None)],
)
def test_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, driver: str | None
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert facts.gather().driver == driver


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "max").write_text("1000000\n")
    (tmp_path / "current").write_text("400000\n")
    monkeypatch.setattr(facts, "_CGROUP_LIMIT", tmp_path / "max")
    monkeypatch.setattr(facts, "_CGROUP_USED", tmp_path / "current")
    seen = facts.gather()
    assert (seen.memory_total_bytes, seen.memory_free_bytes) == (1000000, 600000)
    (tmp_path / "max").write_text("max\n")
    unlimited = facts.gather().memory_total_bytes
    assert unlimited is not None and unlimited > 1000000


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A stand-in for an Apple GPU: the two figures that PyTorch tells of it, in bytes."""
    told = {"recommended_max_memory": 1000, "driver_allocated_memory": 300}
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in told:
        monkeypatch.setattr(torch.mps, name, lambda name=name: told[name])
    return told


def test_the_memory_of_an_apple_gpu(apple: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    memory: list[int | None] = [5000, None]
    monkeypatch.setattr(facts, "_memory", lambda: tuple(memory))
    for device in ("mps", "auto"):
        assert facts.free_memory(device) == 700
    assert facts.gather().mps_free_bytes == 700
    assert facts.free_memory("cpu") is None
    memory[1] = 600  # the machine's memory is what the GPU works in
    assert facts.free_memory("mps") == facts.gather().mps_free_bytes == 600
    assert facts.free_memory("cpu") == 600
    apple["driver_allocated_memory"] = 1100
    assert facts.free_memory("mps") == 0


def test_an_apple_gpu_that_is_not_there_or_does_not_tell(
    apple: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> int:
        raise RuntimeError("Cannot execute getRecommendedMaxMemory() without MPS backend.")

    monkeypatch.setattr(torch.mps, "recommended_max_memory", fail)
    assert facts.free_memory("mps") is None
    assert facts.gather().mps_free_bytes is None
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert facts.free_memory("auto") == facts.free_memory("cpu")


def test_needed_versions_are_those_of_the_package() -> None:
    assert (needed_version("torch"), needed_version("none")) == ("2.8", "0")


@pytest.mark.parametrize(
    ("found", "needed", "answer"),
    [
        ("5.9.0", "5.20", True),
        ("5.20.0.dev0", "5.20", False),
        ("2.13.0+cpu", "2.8", False),
        ("2.8", "2.8.0", False),
        ("1", "1.0.1", True),
    ],
)
def test_versions_are_compared_as_numbers(found: str, needed: str, answer: bool) -> None:
    assert older(found, needed) is answer
