"""What a device and this process tell of a run: time, memory, and when kernels ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

MOST_STEPS = 32
"""Steps that are traced at most: a trace holds each kernel in memory."""
HOST = torch.device("cpu")
"""For what is timed in another process, where this one has no device to wait for."""
_PROC = Path("/proc/self")
Span = tuple[float, float]
"""Start and end; of a kernel in microseconds."""
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


# -- memory ---------------------------------------------------------------------------------


class Peaks:
    """The most memory that is taken from the moment on at which this is made.

    Args:
        devices: those that hold the model.
        process: whether it is this process that holds it.
    """

    def __init__(self, devices: Sequence[torch.device], *, process: bool = True) -> None:
        self._cuda = [device for device in devices if device.type == "cuda"]
        for device in self._cuda:
            torch.cuda.reset_peak_memory_stats(device)
        # Linux counts the peak of resident memory anew from here: proc_pid_clear_refs(5).
        self._resettable = process
        try:
            if process:
                (_PROC / "clear_refs").write_text("5")
        except OSError:
            self._resettable = False

    @property
    def allocated_bytes(self) -> int | None:
        """What tensors have taken on CUDA devices."""
        return sum(map(torch.cuda.max_memory_allocated, self._cuda)) if self._cuda else None

    @property
    def reserved_bytes(self) -> int | None:
        """What the allocator has held on CUDA devices."""
        return sum(map(torch.cuda.max_memory_reserved, self._cuda)) if self._cuda else None

    @property
    def process_bytes(self) -> int | None:
        """Resident memory of the process; None where the system does not tell, or without it."""
        with suppress(OSError):
            for line in (_PROC / "status").read_text().splitlines():
                if self._resettable and line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return None


def devices_of(model: Any) -> list[torch.device]:
    """List the devices that hold a model's weights."""
    found = {parameter.device: None for parameter in model.parameters()}
    return list(found) or [model.device]


def weight_bytes(model: Any) -> int | None:
    """Count the bytes of parameters and buffers, shared ones once, as they are held.

    What waits on another device than the model's counts too; what has no memory does not. None
    where nothing has: the weights are in another process.
    """
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    held = [tensor for tensor in tensors.values() if tensor.device.type != "meta"]
    return sum(tensor.numel() * tensor.element_size() for tensor in held) if held else None
