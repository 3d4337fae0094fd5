"""What NVIDIA GPUs tell: energy used, memory that this process takes, and when kernels ran.

Energy and memory come from NVIDIA's management library: they need the extra `energy`
(nvidia-ml-py) and a driver; without either, or where the driver does not tell a figure, there is
none. The energy counter is renewed every 20 to 100 ms, so that a short window says little:
`per_token` joins windows up to a second.

When kernels ran comes from a trace, which slows what starts kernels, and not the kernels. So it is
made in a run of its own, and what it shows is held against steps that were timed without it.

Source: NVML API reference, nvmlDeviceGetTotalEnergyConsumption (mJ since the driver was loaded,
Volta and later); its rate of renewal: PETSc's manual on GPU energy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

WINDOW_S = 1.0
"""Shortest time over which the counter says something: ten of its slowest renewals."""
MOST_STEPS = 32
"""Steps that are traced at most: a trace holds each kernel in memory."""
Span = tuple[float, float]
"""Start and end of a kernel, in microseconds."""


@dataclass(frozen=True, slots=True)
class Window:
    """Energy over some time, and what was done with it."""

    joules: float
    seconds: float
    tokens: int


class Nvml:
    """Some GPUs of this machine, asked together. Made by `nvml`."""

    def __init__(self, library: Any, handles: Sequence[Any]) -> None:
        self._library = library
        self._handles = handles

    def joules(self) -> float | None:
        """Energy that the GPUs have used so far; only differences mean something."""
        used = self._sum(self._library.nvmlDeviceGetTotalEnergyConsumption)
        return None if used is None else used / 1e3

    def process_bytes(self) -> int | None:
        """Device memory of this process: what its allocators hold, and CUDA's own needs.

        None in a container whose process ids are not those of the driver.
        """
        return self._sum(self._of_process)

    def _of_process(self, handle: Any) -> int | None:
        for process in self._library.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid():
                return None if process.usedGpuMemory is None else int(process.usedGpuMemory)
        return None

    def _sum(self, asked: Any) -> int | None:
        total = 0
        for handle in self._handles:
            try:
                figure = asked(handle)
            except self._library.NVMLError:
                return None
            if figure is None:
                return None
            total += int(figure)
        return total


@contextmanager
def nvml(devices: Iterable[torch.device]) -> Iterator[Nvml | None]:
    """Open NVML on the CUDA devices among these; None where there is none, or no NVML."""
    chosen = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    try:
        import pynvml
    except ImportError:
        chosen = []
    if not chosen:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield _opened(pynvml, chosen)
    finally:
        pynvml.nvmlShutdown()


def per_token(windows: Iterable[Window]) -> list[float]:
    """Return joules per token, of neighbouring windows joined until they last `WINDOW_S`.

    What is left at the end is too short to say something, unless it is all there is.
    """
    samples: list[float] = []
    joules, seconds, tokens = 0.0, 0.0, 0
    for window in windows:
        joules, seconds = joules + window.joules, seconds + window.seconds
        tokens += window.tokens
        if seconds >= WINDOW_S and tokens:
            samples.append(joules / tokens)
            joules, seconds, tokens = 0.0, 0.0, 0
    if not samples and tokens:
        samples.append(joules / tokens)
    return samples


def _opened(library: Any, chosen: Sequence[int]) -> Nvml | None:
    try:
        # NVML counts all GPUs, PyTorch those of CUDA_VISIBLE_DEVICES; the UUID means the same one.
        handles = [
            library.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
            for index in chosen
        ]
    except (library.NVMLError, AttributeError):
        return None
    return Nvml(library, handles)


# -- kernels ----------------------------------------------------------------------------------


def traceable(device: torch.device) -> bool:
    """Whether kernels of a device can be told one by one."""
    return device.type == "cuda"


def trace(work: Callable[[], None], device: torch.device) -> list[Span]:
    """Do some work on a CUDA device and return when its kernels ran."""
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize(device)
    return [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or []
        if event.device_type.name == "CUDA"
    ]


def covered(spans: Sequence[Span]) -> float:
    """Add up spans, what lies in several of them once."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
