"""How fast a device moves bytes, multiplies matrices and starts kernels: measured in a few seconds.

The bounds divide by these rates, so they are those of the best simple kernels, and bytes are the
ones that a kernel must move: a CPU that reads a line before it overwrites it moves more.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from mvw_cli.bench.measure.device import Clock
from mvw_cli.bench.stats import Summary, summarise
from mvw_cli.cost.case import Device
from mvw_cli.environment import describe_environment
from mvw_cli.errors import MvwError, OutOfMemory
from mvw_cli.files import replacing
from mvw_cli.machine.facts import free_memory
from mvw_cli.profiles.store import user_folder

_VERSION = 1
_ROUNDS, _FEWEST = 9, 5
"""Samples of each figure, and the fewest where they are long. The best is taken, as STREAM does:
what disturbs a kernel only slows it."""
_ENOUGH_S = 1.0
"""Time after which the fewest samples are enough."""
_SAMPLE_S = 0.02
"""What one sample lasts at least."""
_MOST_BYTES = {"cuda": 1 << 30, "mps": 1 << 28, "cpu": 1 << 28}
"""Of one tensor: many times the caches."""
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
        place = _device(device)
        key = _key(place, dtype)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        file = (cache_dir or cache_folder()) / f"calibration-{digest[:16]}.json"
        known = _read(file, key)
        if known is not None:
            return known
        with torch.inference_mode():
            found, spread = _measure(place, dtype)
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
    if spread:
        return replace(found, reference=f"{found.reference}, {UNSTABLE}: {spread}")
    document = json.dumps({"key": key, "measured": asdict(found)}, indent=2)
    with suppress(OSError):  # that it can't be kept is no reason to fail
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as opened:
            opened.write(document.encode("utf-8") + b"\n")
    return found


def cache_folder(env: Mapping[str, str] = os.environ) -> Path:
    """Return where measurements are kept; the folder need not exist."""
    return user_folder(env).parent / "cache"


def _read(file: Path, key: dict[str, Any]) -> Device | None:
    """Read a former measurement; None where there is none that can be used."""
    try:
        document = json.loads(file.read_text("utf-8"))
        if document["key"] != key:
            return None
        return TypeAdapter(Device).validate_python(document["measured"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None


def _measure(place: torch.device, dtype: str) -> tuple[Device, str]:
    """Measure; the text says what spreads too much, and is empty where nothing does."""
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
    spreads = [
        f"{what} spreads by {summary.spread:.0%}"
        for what, summary in (("bandwidth", bandwidth), ("matrix rate", rate))
        if summary.unstable
    ]
    found = Device(
        name=describe_environment(str(place)).device_name,
        source="measured",
        bandwidth_bytes_per_s=_best(bandwidth),
        flops_per_s=_best(rate),
        launch_s=1 / _best(launches),
        memory_bytes=_memory(place),
        reference=f"measured {datetime.now(UTC):%Y-%m-%d} in {dtype}",
    )
    return found, ", ".join(spreads)


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
    best: Summary | None = None
    for side in _SIDES:
        left, right = (
            torch.ones(side, side, device=place, dtype=getattr(torch, dtype)) for _ in range(2)
        )
        out = torch.empty_like(left)

        def product(a: torch.Tensor = left, b: torch.Tensor = right, c: Any = out) -> None:
            torch.mm(a, b, out=c)

        found = _rate(clock, 2 * side**3, product)
        best = found if best is None or _best(found) > _best(best) else best
        if 8 * 2 * side**3 / _best(best) > _LONGEST_S:  # what the next side would take
            break
    assert best is not None
    return best


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
    began = start
    while len(samples) < _ROUNDS and (len(samples) < _FEWEST or clock.now() - began < _ENOUGH_S):
        start = clock.now()
        for _ in range(repeats):
            work()
        samples.append(amount * repeats / max(clock.now() - start, 1e-9))
    return summarise(samples)


def _best(rates: Summary) -> float:
    return max(rates.samples)


def _tensor_bytes(place: torch.device) -> int:
    """Choose the size of a tensor: far beyond the caches, and three of them in what is free."""
    most = _MOST_BYTES.get(place.type, _MOST_BYTES["cpu"])
    free, cache = free_memory(str(place)) or 1 << 31, 0
    if place.type == "cuda":
        cache = int(getattr(torch.cuda.get_device_properties(place), "L2_cache_size", 0))
    return max(1 << 20, min(max(most, 8 * cache), free // 8) // 4 * 4)


def _device(device: str) -> torch.device:
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _memory(place: torch.device) -> int | None:
    if place.type == "cuda":
        return int(torch.cuda.get_device_properties(place).total_memory)
    with suppress(OSError, ValueError, AttributeError):  # not on every platform
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _key(place: torch.device, dtype: str) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "device": describe_environment(str(place)).device_name,
        "kind": place.type,
        "dtype": dtype,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
