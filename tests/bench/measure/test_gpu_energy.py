"""Energy and device memory of a process, told by a stand-in for NVIDIA's library."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mvw_cli.bench.measure.device import Window, nvml, per_token

CUDA = [torch.device("cuda", 0), torch.device("cuda", 2), torch.device("cuda", 2)]


class Library:
    """Answers as pynvml of nvidia-ml-py 13 does, of GPUs whose figures are set here."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.millijoules = {"GPU-zero": 5_000, "GPU-two": 70_000}
        self.processes: dict[str, list[Any]] = {
            name: [SimpleNamespace(pid=1, usedGpuMemory=9), self.own(size)]
            for name, size in (("GPU-zero", 100), ("GPU-two", 20))
        }
        self.open = 0

    @staticmethod
    def own(size: int | None) -> Any:
        return SimpleNamespace(pid=os.getpid(), usedGpuMemory=size)

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return self.millijoules[handle]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return self.processes[handle]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    names = {0: "zero", 2: "two"}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=names[index])
    )
    return made


def test_energy_and_memory_are_summed_over_the_model_s_gpus(library: Library) -> None:
    with nvml(CUDA) as gpus:
        assert gpus is not None
        assert gpus.joules() == 75.0
        assert gpus.process_bytes() == 120
        library.millijoules["GPU-two"] += 2_500
        assert gpus.joules() == 77.5
        assert library.open == 1
    assert library.open == 0


def refuse(*_: object) -> None:
    raise Library.NVMLError("Not Supported")


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_without_a_driver_there_is_nobody_to_ask(library: Library, broken: str) -> None:
    setattr(library, broken, refuse)
    with nvml(CUDA) as gpus:
        assert gpus is None
    assert library.open == 0


def test_a_gpu_without_a_counter_has_no_energy(library: Library) -> None:
    setattr(library, "nvmlDeviceGetTotalEnergyConsumption", refuse)  # noqa: B010
    with nvml(CUDA) as gpus:
        assert gpus is not None
        assert gpus.joules() is None
        assert gpus.process_bytes() == 120


def test_a_process_that_the_driver_does_not_know_has_no_figure(library: Library) -> None:
    library.processes["GPU-two"] = [SimpleNamespace(pid=1, usedGpuMemory=9)]
    with nvml(CUDA) as gpus:
        assert gpus is not None and gpus.process_bytes() is None
    library.processes["GPU-two"] = [Library.own(None)]  # as on Windows
    with nvml(CUDA) as gpus:
        assert gpus is not None and gpus.process_bytes() is None


def test_without_a_gpu_or_the_library_there_is_nobody_to_ask(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nvml([torch.device("cpu")]) as gpus:
        assert gpus is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with nvml(CUDA) as gpus:
        assert gpus is None


def test_short_windows_are_joined() -> None:
    windows = [Window(2.0, 0.4, 10), Window(4.0, 0.4, 10), Window(3.0, 0.4, 10), Window(9, 0.4, 1)]
    assert per_token(windows) == [0.3]  # the last one alone is too short
    assert per_token(windows[:1]) == [0.2]  # all there is
    assert per_token([Window(6.0, 2.0, 3), Window(8.0, 2.0, 2)]) == [2.0, 4.0]
    assert per_token([]) == []
