"""Whether a model's weights fit into the memory that is free, before any of them is read.

Counted from the configuration alone (`cost.py`). Where something can't be found out it says
nothing: what is wrong with a checkpoint is for loading it to tell.
"""

from __future__ import annotations

import shlex

from mvw_cli.adapter import Adapter, ModelSpec
from mvw_cli.cost import BITS, Shape, shape_of, weight_bytes
from mvw_cli.doctor.facts import OFFLOADED, free_memory, gpu_count
from mvw_cli.doctor.weights import locate_weights
from mvw_cli.errors import OutOfMemory
from mvw_cli.plugins import find_adapter
from mvw_cli.units import readable_bytes

_PLENTY = 8
"""Files this many times smaller than the free memory fit in whatever type they are read: float32
takes 4 times the memory of one byte, and the rest is for what may be read meanwhile."""


def check_fit(name: str, adapter: Adapter, spec: ModelSpec) -> None:
    """Compare what the weights take with what the device has free.

    Args:
        name: of the adapter, as a profile has it.

    Raises:
        OutOfMemory: they take more.
    """
    free = _free(spec)
    if spec.model is None or free is None or _small(name, spec, free):
        return
    try:
        config = adapter.shape(spec)
        if getattr(config, "quantization_config", None) is not None:
            return  # smaller than its shape, and by how much is for the method to know
        shape = shape_of(adapter, config)
    except Exception:  # of adapters by others, too; see the module's docstring
        return
    dtype = shape.dtype if spec.dtype == "auto" else spec.dtype
    needed = weight_bytes(shape.weights, dtype, BITS[spec.quantization])
    if needed <= free:
        return
    where = "" if spec.device == "auto" else f" on {spec.device}"
    if spec.device_map is not None:
        where = " of all GPUs and of the machine" if gpu_count() else ""
    held = dtype if spec.quantization is None else f"{dtype} and {spec.quantization}"
    raise OutOfMemory(
        f"{spec.model} does not fit into the free memory{where}.",
        cause=f"Its weights take {readable_bytes(needed)} in {held}; {readable_bytes(free)} free.",
        hint=_what_fits(name, spec, shape, dtype, free),
    )


def _free(spec: ModelSpec) -> int | None:
    """Say what is free where the weights are to go, or None where that is not known.

    What GPUs have no room for, accelerate keeps in the machine's memory: slow, but it runs.
    """
    if spec.device_map is None or not gpu_count():
        return free_memory(spec.device)
    gpus = [free_memory(f"cuda:{index}") for index in range(gpu_count())]
    memory = free_memory("cpu")
    known = [one for one in gpus if one is not None]
    if memory is None or len(known) < len(gpus):
        return None
    return sum(known) + int(OFFLOADED * memory)


def _small(name: str, spec: ModelSpec, free: int) -> bool:
    """Whether the files of a checkpoint are so small that there is nothing to count."""
    model = spec.model or ""
    if "/" not in model and model in find_adapter(name).checkpoints:
        return True  # it comes inside the adapter's package
    held = locate_weights(model, spec.revision)
    return 0 < held.size_bytes * _PLENTY <= free and not (held.missing or held.damaged)


def _what_fits(name: str, spec: ModelSpec, shape: Shape, dtype: str, free: int) -> str:
    """Name the smallest change after which the weights fit, or the list of other models."""
    narrow = weight_bytes(shape.weights, "bfloat16")
    command = ["mvw", "infer", "IMAGE", "QUESTION", "--adapter", name]
    command += ["--model", spec.model or "", "--dtype", "bfloat16"]
    if dtype == "float32" and narrow <= free:
        device = [] if spec.device == "auto" else ["--device", spec.device]
        return shlex.join([*command, *device])
    if narrow <= (free_memory("cpu") or 0) and spec.device not in ("cpu", "mps"):
        return shlex.join([*command, "--device", "cpu"])
    return "mvw list profiles"
