"""How fast a device moves bytes, multiplies matrices and starts kernels: measured in a few seconds.

The bounds divide by these rates, so they are those of the best simple kernels, and bytes are the
ones that a kernel must move: a CPU that reads a line before it overwrites it moves more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from mvw_cli.bench.measure.device import Clock
from mvw_cli.bench.stats import Summary, summarise
from mvw_cli.cost.case import Device
from mvw_cli.environment import describe_environment
from mvw_cli.errors import MvwError, OutOfMemory
from mvw_cli.files import replacing
from mvw_cli.machine.facts import free_memory, gather
from mvw_cli.profiles.store import user_folder

_VERSION = 2
_ROUNDS = 5
"""Samples of each figure. The best is taken, as STREAM does: what disturbs a kernel only slows
it."""
_SAMPLE_S = 0.02
"""What one sample lasts at least."""
_MOST_BYTES = {"cuda": 1 << 30}
"""Of one tensor, many times the caches; 256 MiB elsewhere."""
_SIDES = (512, 1024, 2048, 4096, 8192)
"""Sides of the matrices; the largest that does not take too long is used."""
_LONGEST_S = 0.5
"""Of one product."""
_LAUNCHES = 200
UNSTABLE = "unstable"
"""What the reference of a measurement holds that was not stored."""


def calibrate(device: str, dtype: str, *, cache_dir: Path | None = None) -> Device:
    """Measure a device, or read what was measured on it before.

    A measurement whose samples spread too much is returned, says so, and is not stored.

    Args:
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for the best that there is.
        dtype: `float32`, `bfloat16` or `float16`, of the products of matrices.
        cache_dir: folder of former measurements; by default in mvw's own.

    Raises:
        OutOfMemory: not even small tensors fit beside what is there.
        MvwError: there is no such device, or it can't compute in this dtype.
    """
    try:
        place = torch.device(gather().device if device == "auto" else device)
        name = describe_environment(str(place)).device_name
        key = f"{_VERSION} {name} {dtype} {torch.__version__} {torch.get_num_threads()}"
        folder = cache_dir or user_folder().parent / "cache"
        file = folder / f"calibration-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        with suppress(OSError, ValidationError):
            return TypeAdapter(Device).validate_json(file.read_bytes())
        with torch.inference_mode():
            found = _measure(place, name, dtype)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{device} has no memory left to measure it.",
            cause=str(error).splitlines()[0],
            hint="mvw doctor",
        ) from error
    except (RuntimeError, AssertionError) as error:  # the second of a torch without CUDA
        raise MvwError(
            f"The device {device} can't be measured in {dtype}.",
            cause=str(error).splitlines()[0],
            hint="mvw doctor",
        ) from error
    if UNSTABLE not in found.reference:
        with suppress(OSError):  # that it can't be kept is no reason to fail
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(file) as opened:
                opened.write(json.dumps(asdict(found), indent=2).encode())
    return found


def _measure(place: torch.device, name: str, dtype: str) -> Device:
    clock = Clock(place)
    launches = _starting(place, clock)
    # Twice, so that a machine that is busy for a while does not pass for a slow one.
    passes = [
        (max(_moving(place, clock), key=_best), _multiplying(place, dtype, clock)) for _ in range(2)
    ]
    bandwidth, rate = (
        summarise([sample for summary in both for sample in summary.samples])
        for both in zip(*passes, strict=True)
    )
    cuda = place.type == "cuda"
    found = Device(
        name=name,
        source="measured",
        bandwidth_bytes_per_s=_best(bandwidth),
        flops_per_s=_best(rate),
        launch_s=1 / _best(launches),
        memory_bytes=torch.cuda.get_device_properties(place).total_memory
        if cuda
        else gather().memory_total_bytes,
        reference=f"measured {datetime.now(UTC):%Y-%m-%d} in {dtype}",
    )
    spreads = [
        f"{what} spreads by {summary.spread:.0%}"
        for what, summary in (("bandwidth", bandwidth), ("matrix rate", rate))
        if summary.unstable
    ]
    if not spreads:
        return found
    return replace(found, reference=f"{found.reference}, {UNSTABLE}: {', '.join(spreads)}")


def _moving(place: torch.device, clock: Clock) -> list[Summary]:
    """Measure bytes per second of a copy, of a sum of two, and of reading alone."""
    size = _tensor_bytes(place)
    one, other, third = (torch.ones(size // 4, device=place) for _ in range(3))
    return [
        _rate(clock, 2 * size, lambda: third.copy_(one)),
        _rate(clock, 3 * size, lambda: torch.add(one, other, alpha=0.5, out=third)),
        _rate(clock, size, one.sum),
    ]


def _multiplying(place: torch.device, dtype: str, clock: Clock) -> Summary:
    """Measure FLOPs per second of a product of square matrices, at the side that does best."""
    found: list[Summary] = []
    for side in _SIDES:
        left, right, out = (
            torch.ones(side, side, device=place, dtype=getattr(torch, dtype)) for _ in range(3)
        )
        flops = 2 * side**3
        found.append(_rate(clock, flops, partial(torch.mm, left, right, out=out)))
        if 8 * flops / max(map(_best, found)) > _LONGEST_S:  # what the next side would take
            break
    return max(found, key=_best)


def _starting(place: torch.device, clock: Clock) -> Summary:
    """Measure how many of the smallest kernels run per second, one after the other."""
    number = torch.zeros(1, device=place)

    def many() -> None:
        for _ in range(_LAUNCHES):
            number.add_(1)

    return _rate(clock, _LAUNCHES, many)


def _rate(clock: Clock, amount: float, work: Callable[[], object]) -> Summary:
    """Measure how much of something a piece of work does per second, warm."""
    work()
    start = clock.now()
    work()
    once = max(clock.now() - start, 1e-9)
    repeats = max(1, round(_SAMPLE_S / once))
    samples: list[float] = []
    for _ in range(_ROUNDS):
        start = clock.now()
        for _ in range(repeats):
            work()
        samples.append(amount * repeats / max(clock.now() - start, 1e-9))
    return summarise(samples)


def _best(rates: Summary) -> float:
    return max(rates.samples)


def _tensor_bytes(place: torch.device) -> int:
    """Choose the size of a tensor: far beyond the caches, and three of them in what is free."""
    most, free = _MOST_BYTES.get(place.type, 1 << 28), free_memory(str(place)) or 1 << 31
    return max(1 << 20, min(most, free // 8) // 4 * 4)
