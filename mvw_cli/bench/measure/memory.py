"""Memory of a run: what the KV cache, the device's allocator and the process hold, and when.

KV bytes are counted twice over: the entries in use (`events.py` holds them against the model's
configuration), and the storages behind them, which a view keeps alive and only a copy frees.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mvw_cli.bench.documents import MemoryPoint
from mvw_cli.engine.slots import Slots

MOST_POINTS = 200
_PROC = Path("/proc/self")


class Watch:
    """Looks at memory during one run; nothing of it runs in the runs that are timed.

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
                process_bytes=process_bytes(),
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
        seen = [point.process_bytes for point in self._points if point.process_bytes is not None]
        return max([*seen, *([] if peak is None else [peak])], default=None)

    def timeline(self, events: Sequence[int] = ()) -> list[MemoryPoint]:
        """Return at most `MOST_POINTS` points, evenly spaced.

        Args:
            events: tokens that are kept in any case, with both neighbours of each.
        """
        return thinned(self._points, events)

    def _device(self, cuda: str, mps: str | None) -> int | None:
        if self._cuda:
            return sum(int(getattr(torch.cuda, cuda)(device)) for device in self._cuda)
        return int(getattr(torch.mps, mps)()) if self._mps and mps else None


def thinned(points: Sequence[MemoryPoint], events: Sequence[int]) -> list[MemoryPoint]:
    """Choose points as `Watch.timeline` does."""
    if len(points) <= MOST_POINTS:
        return list(points)
    near = {token + side for token in events for side in (-1, 0, 1)}
    kept = {place for place, point in enumerate(points) if point.token in near}
    kept = set(sorted(kept)[: MOST_POINTS // 2]) | {0, len(points) - 1}
    room = MOST_POINTS - len(kept)
    rest = [place for place in range(len(points)) if place not in kept]
    kept |= {rest[int(number * len(rest) / room)] for number in range(room)}
    return [points[place] for place in sorted(kept)]


def process_bytes() -> int | None:
    """Resident memory of this process now; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        pages = int((_PROC / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None


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
    """Let Linux count the peak of resident memory from now; say whether it does.

    Source: proc_pid_clear_refs(5).
    """
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(name: str) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in (_PROC / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
