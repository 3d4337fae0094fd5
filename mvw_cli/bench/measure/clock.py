"""Time on a device: when something was asked for is not when it was done.

Kernels of CUDA and Metal run after the call that starts them has returned. `now` waits for them;
`mark` does not stall CUDA, as it leaves an event in the stream and reads it later. It does not know
what is measured.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import device as Device

Mark = Any
"""A moment: seconds of the monotonic clock, or an event in a CUDA stream."""


class Clock:
    """Tells the time of one device. `now` is on the scale of the engine's events."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def now(self) -> float:
        """Wait until the device has done all it was asked for; return seconds."""
        self.wait()
        return perf_counter()

    def wait(self) -> None:
        """Wait until the device has done all that it was asked for."""
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()

    def mark(self) -> Mark:
        """Note this moment in the device's work, without a wait on CUDA."""
        if self._device.type != "cuda":
            return self.now()
        import torch

        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, start: Mark, end: Mark) -> float:
        """Say how long it took from one mark of this clock to another."""
        if self._device.type != "cuda":
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
