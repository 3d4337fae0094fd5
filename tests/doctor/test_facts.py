"""What `mvw doctor` finds out about a machine: this one, and a few made-up parts of others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mvw_cli.doctor import facts
from mvw_cli.doctor.machine import needed_versions, older


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


def test_a_driver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(index: int) -> None:
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    assert facts.gather().gpus == ()


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


def test_needed_versions_are_those_of_the_package() -> None:
    needed = needed_versions()
    assert set(needed) >= {"python", "torch", "transformers"}
    assert "flash-attn" not in needed


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
