"""What a device and this process tell of a run: time, memory, energy, and when kernels ran.

Energy and memory of NVIDIA GPUs come from their management library: they need the extra `energy`
(nvidia-ml-py) and a driver; where either is missing, or does not tell a figure, there is none.
Source: NVML API reference, nvmlDeviceGetTotalEnergyConsumption (mJ since the driver was loaded,
Volta and later), renewed every 20 to 100 ms (PETSc's manual on GPU energy).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from mvw_cli.bench.documents import MemoryPoint
from mvw_cli.engine.slots import Slots

WINDOW_S = 1.0
"""Shortest time over which the energy counter says something: ten of its slowest renewals."""
MOST_STEPS = 32
"""Steps that are traced at most: a trace holds each kernel in memory."""
MOST_POINTS = 200
_PROC = Path("/proc/self")
Span = tuple[float, float]
"""Start and end of a kernel, in microseconds."""
Mark = Any
"""A moment: seconds of the monotonic clock, or an event in a CUDA stream."""


class Clock:
    """The time of one device; `now` is on the scale of the engine's events.

    Kernels of CUDA and Metal run after the call that starts them has returned, so a clock has to
    wait for them, or to leave an event in the stream and read it later.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> float:
        """Wait until the device has done all it was asked for; return seconds."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        return perf_counter()

    def mark(self) -> Mark:
        """Note this moment in the device's work, without a wait on CUDA."""
        if self._device.type != "cuda":
            return self.now()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, start: Mark, end: Mark) -> float:
        """Compute how long it took from one mark of this clock to another."""
        if self._device.type != "cuda":
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


# -- kernels --------------------------------------------------------------------------------


def traceable(device: torch.device) -> bool:
    """Whether kernels of a device can be told one by one."""
    return device.type == "cuda"


def trace(work: Callable[[], None], device: torch.device) -> list[Span]:
    """Do some work on a CUDA device and return when its kernels ran.

    A trace slows what starts kernels, and not the kernels: so it is made in a run of its own, and
    what it shows is held against steps that were timed without it.
    """
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


# -- energy ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Window:
    """Energy over some time, and what was done with it."""

    joules: float
    seconds: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Nvml:
    """Some GPUs of this machine, asked together. Made by `nvml`."""

    library: Any
    handles: list[Any]

    def joules(self) -> float | None:
        """Energy that the GPUs have used so far; only differences mean something."""
        used = self._sum(self.library.nvmlDeviceGetTotalEnergyConsumption)
        return None if used is None else used / 1e3

    def process_bytes(self) -> int | None:
        """Device memory of this process: what its allocators hold, and CUDA's own needs.

        None in a container whose process ids are not those of the driver.
        """

        def own(handle: Any) -> int | None:
            processes = self.library.nvmlDeviceGetComputeRunningProcesses(handle)
            return next((one.usedGpuMemory for one in processes if one.pid == os.getpid()), None)

        return self._sum(own)

    def _sum(self, ask: Callable[[Any], int | None]) -> int | None:
        total = 0
        for handle in self.handles:
            try:
                figure = ask(handle)
            except self.library.NVMLError:
                return None
            if figure is None:
                return None
            total += int(figure)
        return total


@contextmanager
def nvml(devices: Iterable[torch.device]) -> Iterator[Nvml | None]:
    """Open NVML on the CUDA devices among these; None where there is none, or no NVML."""
    chosen = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    pynvml = _opened() if chosen else None
    if pynvml is None:
        yield None
        return
    try:
        # NVML counts all GPUs, PyTorch those of CUDA_VISIBLE_DEVICES; the UUID means the same one.
        uuids = [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in chosen]
        gpus = Nvml(pynvml, [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids])
    except (pynvml.NVMLError, AttributeError):
        gpus = None
    try:
        yield gpus
    finally:
        pynvml.nvmlShutdown()


def _opened() -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        return None
    return pynvml


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


# -- memory ---------------------------------------------------------------------------------


class Watch:
    """Notes memory during one run; nothing of it runs in the runs that are timed.

    Args:
        devices: those that hold the model.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._cuda = [device for device in devices if device.type == "cuda"]
        self._mps = any(device.type == "mps" for device in devices)
        self._points: list[MemoryPoint] = []
        self._resettable = False

    def begin(self) -> None:
        """Let peaks count from here."""
        self._points.clear()
        for device in self._cuda:
            torch.cuda.reset_peak_memory_stats(device)
        self._resettable = _reset_process_peak()

    def look(self, token: int, slots: Slots) -> None:
        """Take a point once so many tokens have been generated."""
        self._points.append(
            MemoryPoint(
                token=token,
                kv_bytes=slots.kv_bytes,
                kv_allocated_bytes=slots.kv_allocated_bytes,
                device_allocated_bytes=self._device("memory_allocated", "current_allocated_memory"),
                device_reserved_bytes=self._device("memory_reserved", "driver_allocated_memory"),
                process_bytes=_status_bytes("VmRSS"),
            )
        )

    @property
    def allocated_peak_bytes(self) -> int | None:
        """The most that tensors have taken on the devices; Metal does not tell."""
        return self._device("max_memory_allocated", None)

    @property
    def reserved_peak_bytes(self) -> int | None:
        """The most that the allocator has held on the devices."""
        return self._device("max_memory_reserved", None)

    @property
    def process_peak_bytes(self) -> int | None:
        """The most resident memory: all of it on Linux, elsewhere what the points have seen."""
        peak = _status_bytes("VmHWM") if self._resettable else None
        seen = (point.process_bytes for point in self._points)
        return max((size for size in (peak, *seen) if size is not None), default=None)

    def timeline(self, changes: Sequence[int] = ()) -> list[MemoryPoint]:
        """Return at most `MOST_POINTS` points, evenly spaced.

        Args:
            changes: tokens that are kept in any case, with both neighbours of each.
        """
        return thinned(self._points, changes)

    def _device(self, cuda: str, mps: str | None) -> int | None:
        if self._cuda:
            return sum(int(getattr(torch.cuda, cuda)(device)) for device in self._cuda)
        return int(getattr(torch.mps, mps)()) if self._mps and mps else None


def thinned(points: Sequence[MemoryPoint], changes: Sequence[int]) -> list[MemoryPoint]:
    """Choose points as `Watch.timeline` does."""
    if len(points) <= MOST_POINTS:
        return list(points)
    near = {token + side for token in changes for side in (-1, 0, 1)}
    kept = {place for place, point in enumerate(points) if point.token in near}
    kept = set(sorted(kept)[: MOST_POINTS // 2]) | {0, len(points) - 1}
    room = MOST_POINTS - len(kept)
    rest = [place for place in range(len(points)) if place not in kept]
    kept |= {rest[int(number * len(rest) / room)] for number in range(room)}
    return [points[place] for place in sorted(kept)]


def devices_of(model: Any) -> list[torch.device]:
    """List the devices that hold a model's weights."""
    found = {parameter.device: None for parameter in model.parameters()}
    return list(found) or [model.device]


def weight_bytes(model: Any) -> int:
    """Count the bytes of parameters and buffers, shared ones once, as they are held.

    What waits on another device than the model's counts too; what has no memory does not.
    """
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in tensors.values()
        if tensor.device.type != "meta"
    )


def _reset_process_peak() -> bool:
    """Let Linux count the peak of resident memory from now; return whether it does.

    Source: proc_pid_clear_refs(5).
    """
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(name: str) -> int | None:
    """Read an amount of /proc/self/status; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        for line in (_PROC / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
