"""Checks that hold for every model: versions, devices, optional packages, disk, memory, plugins."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires

from mvw_cli import __version__
from mvw_cli.doctor.findings import Finding
from mvw_cli.machine.facts import Facts
from mvw_cli.plugins import OWN, Plugin
from mvw_cli.text import readable_bytes

LITTLE_DISK = 20 * 2**30
"""The weights of an 8-billion-parameter model in 16 bits, and some room."""
LITTLE_MEMORY = 4 * 2**30


def check_installation(facts: Facts, plugins: Sequence[Plugin]) -> Iterator[Finding]:
    """Judge this machine and this installation."""
    yield Finding("mvw", "ok", __version__)
    yield Finding("Python", "ok", facts.python)
    yield _version("PyTorch", "torch", facts.torch, facts.torch_problem)
    yield _version("transformers", "transformers", facts.transformers)
    yield _device(facts)
    yield _flash(facts)
    for name, version, used_for in (
        ("accelerate", facts.accelerate, "device_map: auto, quantisation"),
        ("bitsandbytes", facts.bitsandbytes, "4- and 8-bit weights"),
    ):
        yield Finding(name, "ok", version or f"not installed; needed for {used_for}")
    yield _disk(facts)
    yield _memory(facts)
    troubled = [plugin for plugin in plugins if plugin.status != "ok"]
    for plugin in troubled:
        found = f"{plugin.distribution} {plugin.version} is {plugin.status}: {plugin.cause}"
        yield Finding("plugin", "warning", found, plugin.way_out or "mvw plugins")
    if not troubled:
        others = sorted({one.distribution for one in plugins} - {OWN})
        yield Finding("plugins", "ok", ", ".join(others) or "mvw's own")


def needed_version(distribution: str) -> str:
    """Return the lowest version that mvw needs; "0" where mvw itself is not installed."""
    try:
        matches = [re.match(rf"{distribution}>=([0-9.]+)", one) for one in requires(OWN) or ()]
    except PackageNotFoundError:
        return "0"
    return next((match[1] for match in matches if match), "0")


def older(found: str, needed: str) -> bool:
    """Compare the leading numbers of two versions: 5.9 is older than 5.20."""
    one, other = (
        [int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3]]
        for text in (found, needed)
    )
    return one + [0] * (3 - len(one)) < other + [0] * (3 - len(other))


def _version(
    name: str, distribution: str, found: str | None, import_problem: str | None = None
) -> Finding:
    needed = needed_version(distribution)
    way_out = f'pip install --upgrade "{distribution}>={needed}"'
    if found is None:
        return Finding(name, "problem", "not installed", way_out)
    if import_problem is not None:
        what = f"{found} can't be imported: {import_problem}"
        return Finding(name, "problem", what, f"pip install --force-reinstall {distribution}")
    if older(found, needed):
        return Finding(name, "problem", f"{found}; mvw needs {needed} or later", way_out)
    return Finding(name, "ok", found)


def _device(facts: Facts) -> Finding:
    if facts.torch is None or facts.torch_problem is not None:
        return Finding("device", "warning", "not known without PyTorch", "pip install torch")
    if facts.gpus:
        names = (f"{gpu.name} ({_free_of(gpu.free_bytes, gpu.total_bytes)})" for gpu in facts.gpus)
        driver = f"; driver {facts.driver}" if facts.driver else ""
        return Finding("device", "ok", f"{', '.join(names)}; CUDA {facts.torch_cuda}{driver}")
    if facts.driver is not None and facts.torch_cuda is None:
        found = f"driver {facts.driver} is there, but this PyTorch is built without CUDA"
        return Finding("device", "problem", found, "pip install --force-reinstall torch")
    if facts.driver is not None:
        found = f"PyTorch's CUDA {facts.torch_cuda} finds no GPU with driver {facts.driver}"
        return Finding("device", "problem", found, "nvidia-smi")
    if facts.mps:
        free = facts.mps_free_bytes
        room = "" if free is None else f", {readable_bytes(free)} free"
        return Finding("device", "ok", f"Apple GPU (MPS{room})")
    found = "no GPU: models run on the CPU, large ones slowly"
    return Finding("device", "warning", found, "mvw show --cost")


def _flash(facts: Facts) -> Finding:
    if facts.flash_attn is None and facts.gpus:
        found = "not installed; attention runs on SDPA"
        return Finding("flash-attn", "warning", found, 'pip install "mvw[flash]"')
    unused = "" if facts.gpus else "; of use with a CUDA device only"
    return Finding("flash-attn", "ok", f"{facts.flash_attn or 'not installed'}{unused}")


def _disk(facts: Facts) -> Finding:
    if facts.disk_free_bytes is None:
        return Finding("disk", "problem", f"no disk at {facts.hub_cache}", "unset HF_HUB_CACHE")
    found = f"{readable_bytes(facts.disk_free_bytes)} free for the hub cache in {facts.hub_cache}"
    if facts.disk_free_bytes < LITTLE_DISK:
        return Finding("disk", "warning", found, "hf cache ls")
    return Finding("disk", "ok", found)


def _memory(facts: Facts) -> Finding:
    if facts.memory_free_bytes is None:
        return Finding("memory", "ok", "how much is free is not known")
    found = _free_of(facts.memory_free_bytes, facts.memory_total_bytes)
    if facts.memory_free_bytes < LITTLE_MEMORY:
        return Finding("memory", "warning", found, "mvw doctor --profile shapes")
    return Finding("memory", "ok", found)


def _free_of(free: int, total: int | None) -> str:
    of = "" if total is None else f" of {readable_bytes(total)}"
    return f"{readable_bytes(free)}{of} free"
