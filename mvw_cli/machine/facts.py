"""What the machine and the installation are like, without a judgement.

Whatever can't be found out is None, never an exception: `mvw doctor` is run on broken
installations. No weights are read and no network is asked.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mvw_cli.environment import installed_version

OFFLOADED = 0.9
"""Part of the free memory that takes weights for which GPUs have no room. Source: `get_max_memory`
in transformers/integrations/accelerate.py."""
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USED = Path("/sys/fs/cgroup/memory.current")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device."""

    name: str
    total_bytes: int
    free_bytes: int
    bfloat16: bool
    """Whether it computes in bfloat16 itself, without emulation (compute capability 8.0)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the checks judge."""

    python: str
    torch: str | None
    torch_problem: str | None
    """Why PyTorch can't be imported, or None."""
    torch_cuda: str | None
    """Version of CUDA that PyTorch was built with."""
    transformers: str | None
    flash_attn: str | None
    accelerate: str | None
    bitsandbytes: str | None
    gpus: tuple[Gpu, ...]
    mps: bool
    driver: str | None
    """Version of the NVIDIA driver, where there is one."""
    hub_cache: str
    disk_free_bytes: int | None
    """Where the hub cache lies, or will lie."""
    memory_total_bytes: int | None
    memory_free_bytes: int | None
    """What programs may still take, container limits counted."""
    mps_free_bytes: int | None = None
    """What Apple's GPU may still hold of the machine's memory, where there is one."""

    @property
    def device(self) -> str:
        """The device that `auto` takes."""
        if self.gpus:
            return "cuda"
        return "mps" if self.mps else "cpu"

    def kind(self, device: str) -> str:
        """Return the kind of device that a profile's `device` means here: cuda, mps or cpu."""
        return self.device if device == "auto" else device.partition(":")[0]

    def gpu(self, device: str) -> Gpu | None:
        """Return the GPU that a profile's `device` means here, where it means one that is there."""
        index = int(device.partition(":")[2] or 0)
        is_there = self.kind(device) == "cuda" and index < len(self.gpus)
        return self.gpus[index] if is_there else None


def gather() -> Facts:
    """Look at this process' machine."""
    problem, built_with, gpus, mps = _torch()
    cache = hub_cache()
    total, free = _memory()
    return Facts(
        python=platform.python_version(),
        torch=installed_version("torch"),
        torch_problem=problem,
        torch_cuda=built_with,
        transformers=installed_version("transformers"),
        flash_attn=installed_version("flash-attn"),
        accelerate=installed_version("accelerate"),
        bitsandbytes=installed_version("bitsandbytes"),
        gpus=gpus,
        mps=mps,
        driver=_driver(),
        hub_cache=str(cache),
        disk_free_bytes=_free_disk(cache),
        memory_total_bytes=total,
        memory_free_bytes=free,
        mps_free_bytes=_mps_free(free) if mps else None,
    )


def free_memory(device: str) -> int | None:
    """Return what a device (auto, cpu, mps, cuda, cuda:N) has free, in bytes.

    None where it can't be found out, or the device is not there.
    """
    import torch

    kind, _, index = device.partition(":")
    if kind == "cuda" or (kind == "auto" and torch.cuda.is_available()):
        with suppress(RuntimeError, AssertionError):  # it is not there, or does not answer
            return int(torch.cuda.mem_get_info(int(index or 0))[0])
        return None
    free = _memory()[1]
    if kind == "mps" or (kind == "auto" and torch.backends.mps.is_available()):
        return _mps_free(free)
    return free


def gpu_count() -> int:
    """Count the CUDA devices."""
    import torch

    return torch.cuda.device_count()


def hub_cache() -> Path:
    """Return where the hub keeps what it has downloaded: HF_HUB_CACHE, HF_HOME or its default."""
    with suppress(ImportError):
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE)
    return Path.home() / ".cache" / "huggingface" / "hub"


def _torch() -> tuple[str | None, str | None, tuple[Gpu, ...], bool]:
    try:
        import torch
    except Exception as error:  # a broken build fails in many ways
        first = next(iter(str(error).strip().splitlines()), "")
        return f"{type(error).__name__}: {first}", None, (), False
    gpus: list[Gpu] = []
    with suppress(RuntimeError):  # a driver that does not answer
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            capability = torch.cuda.get_device_capability(index)
            name = torch.cuda.get_device_name(index)
            # On AMD there is no such number; what PyTorch serves there has bfloat16.
            native = torch.version.hip is not None or capability >= (8, 0)
            gpus.append(Gpu(name, total, free, native))
    return None, torch.version.cuda, tuple(gpus), torch.backends.mps.is_available()


def _mps_free(memory: int | None) -> int | None:
    """Return what Apple's GPU may still hold: Metal's recommended working set, less what is taken.

    It shares the machine's memory, so what is free of that bounds it too, where that is known.
    Beyond the recommended size macOS pages, which is slower than another model would be.
    """
    import torch

    left = None
    with suppress(RuntimeError, AttributeError):  # it is not there, or does not answer
        limit = torch.mps.recommended_max_memory()
        left = max(0, limit - torch.mps.driver_allocated_memory())
    return left if left is None or memory is None else min(left, memory)


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, encoding="utf-8", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = asked.stdout.split()
    return lines[0] if asked.returncode == 0 and lines else None


def _free_disk(path: Path) -> int | None:
    for folder in (path, *path.parents):
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


def _memory() -> tuple[int | None, int | None]:
    total = free = None
    with suppress(OSError, ValueError, AttributeError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    with suppress(OSError, ValueError):  # "max" is no number: no limit
        limit = int(_CGROUP_LIMIT.read_text())
        left = max(0, limit - int(_CGROUP_USED.read_text()))
        total = limit if total is None else min(total, limit)
        free = left if free is None else min(free, left)
    return total, free
