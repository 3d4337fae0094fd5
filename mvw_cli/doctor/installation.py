"""Checks that hold for every model: versions, devices, optional packages, disk, memory, plugins."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, metadata

from mvw_cli import __version__
from mvw_cli.doctor.findings import Finding
from mvw_cli.machine.facts import Facts
from mvw_cli.plugins import OWN, Plugin
from mvw_cli.text import readable_bytes

LITTLE_DISK = 20 * 2**30
"""The weights of an 8-billion-parameter model in 16 bits, and some room."""
LITTLE_MEMORY = 4 * 2**30
_REQUIREMENT = re.compile(r"^([A-Za-z0-9-]+)>=([0-9.]+)")


def check_installation(facts: Facts, plugins: Sequence[Plugin]) -> Iterator[Finding]:
    """Judge this machine and this installation."""
    needed = needed_versions()
    yield Finding("mvw", "ok", __version__)
    python = needed.get("python", "3")
    yield _version("Python", facts.python, python, f"python{python} -m venv .venv")
    torch = needed.get("torch", "0")
    if facts.torch is not None and facts.torch_problem is not None:
        found = f"{facts.torch} can't be imported: {facts.torch_problem}"
        yield Finding("PyTorch", "problem", found, "pip install --force-reinstall torch")
    else:
        yield _version("PyTorch", facts.torch, torch, f'pip install --upgrade "torch>={torch}"')
    least = needed.get("transformers", "0")
    way_out = f'pip install --upgrade "transformers>={least}"'
    yield _version("transformers", facts.transformers, least, way_out)
    yield _device(facts)
    yield _flash(facts)
    for name, version, used_for in (
        ("accelerate", facts.accelerate, "device_map: auto, quantisation"),
        ("bitsandbytes", facts.bitsandbytes, "4- and 8-bit weights"),
    ):
        yield Finding(name, "ok", version or f"not installed; needed for {used_for}")
    yield _disk(facts)
    yield _memory(facts)
    yield from _plugins(plugins)


def needed_versions() -> dict[str, str]:
    """Read the lowest versions that mvw needs; empty where mvw itself is not installed."""
    try:
        own = metadata(OWN)
    except PackageNotFoundError:
        return {}
    listed = [one for one in own.get_all("Requires-Dist") or [] if "extra ==" not in one]
    listed.append(f"python{own['Requires-Python']}")
    matches = map(_REQUIREMENT.match, listed)
    return {match[1]: match[2] for match in matches if match}


def older(found: str, needed: str) -> bool:
    """Compare the leading numbers of two versions: 5.9 is older than 5.20."""
    return _numbers(found) < _numbers(needed)


def _numbers(text: str) -> list[int]:
    match = re.match(r"\d+(\.\d+)*", text)
    parts = [int(part) for part in match[0].split(".")] if match else []
    return parts + [0] * (4 - len(parts))


def _version(name: str, found: str | None, needed: str, way_out: str) -> Finding:
    if found is None:
        return Finding(name, "problem", "not installed", way_out)
    if older(found, needed):
        return Finding(name, "problem", f"{found}; mvw needs {needed} or later", way_out)
    return Finding(name, "ok", found)


def _device(facts: Facts) -> Finding:
    reinstall = "pip install --force-reinstall torch"
    if facts.torch is None or facts.torch_problem is not None:
        return Finding("device", "warning", "not known without PyTorch", "pip install torch")
    if facts.gpus:
        names = (f"{gpu.name} ({_free_of(gpu.free_bytes, gpu.total_bytes)})" for gpu in facts.gpus)
        driver = f"; driver {facts.driver}" if facts.driver else ""
        return Finding("device", "ok", f"{', '.join(names)}; CUDA {facts.torch_cuda}{driver}")
    if facts.driver is not None and facts.torch_cuda is None:
        found = f"driver {facts.driver} is there, but this PyTorch is built without CUDA"
        return Finding("device", "problem", found, reinstall)
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
    if facts.flash_attn is not None:
        unused = "" if facts.gpus else "; unused without a CUDA device"
        return Finding("flash-attn", "ok", f"{facts.flash_attn}{unused}")
    if facts.gpus:
        found = "not installed; attention runs on SDPA"
        return Finding("flash-attn", "warning", found, 'pip install "mvw[flash]"')
    return Finding("flash-attn", "ok", "not installed; of use with a CUDA device only")


def _disk(facts: Facts) -> Finding:
    if facts.disk_free_bytes is None:
        return Finding("disk", "problem", f"no disk at {facts.hub_cache}", "unset HF_HUB_CACHE")
    found = f"{readable_bytes(facts.disk_free_bytes)} free for the hub cache in {facts.hub_cache}"
    if facts.disk_free_bytes < LITTLE_DISK:
        return Finding("disk", "warning", found, "hf cache ls")
    return Finding("disk", "ok", found)


def _memory(facts: Facts) -> Finding:
    free, total = facts.memory_free_bytes, facts.memory_total_bytes
    if free is None:
        known = "" if total is None else f"{readable_bytes(total)}; "
        return Finding("memory", "ok", f"{known}how much is free is not known")
    if free < LITTLE_MEMORY:
        return Finding("memory", "warning", _free_of(free, total), "mvw doctor --profile shapes")
    return Finding("memory", "ok", _free_of(free, total))


def _free_of(free: int, total: int | None) -> str:
    of = "" if total is None else f" of {readable_bytes(total)}"
    return f"{readable_bytes(free)}{of} free"


def _plugins(plugins: Sequence[Plugin]) -> Iterator[Finding]:
    troubled = [plugin for plugin in plugins if plugin.status != "ok"]
    for plugin in troubled:
        found = f"{plugin.distribution} {plugin.version} is {plugin.status}: {plugin.cause}"
        yield Finding("plugin", "warning", found, plugin.way_out or "mvw plugins")
    if not troubled:
        others = sorted({one.distribution for one in plugins} - {OWN})
        yield Finding("plugins", "ok", ", ".join(others) or "mvw's own")
