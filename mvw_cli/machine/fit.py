"""Whether a model's weights fit into the memory that is free, before any of them is read."""

from __future__ import annotations

import shlex

from mvw_cli.adapter import Adapter, ModelSpec
from mvw_cli.errors import NotFetched, OutOfMemory
from mvw_cli.machine.facts import OFFLOADED, free_memory, gather, gpu_count, locate_weights
from mvw_cli.plugins.lookup import find_adapter
from mvw_cli.text import readable_bytes

_PLENTY = 8
"""Files this many times smaller than the free memory fit in whatever type they are read: float32
takes 4 times the memory of one byte, and the rest is for what may be read meanwhile."""


def check_fit(name: str, adapter: Adapter, spec: ModelSpec) -> None:
    """Compare what the weights take with what the device has free.

    Where something can't be found out it passes: what is wrong with a checkpoint is for loading it
    to tell, unless the hub does not give it.

    Args:
        name: of the adapter, as a profile has it.

    Raises:
        OutOfMemory: they take more.
        NotFetched: the hub does not give the configuration.
    """
    if spec.model is None or (
        "/" not in spec.model and spec.model in find_adapter(name).checkpoints
    ):
        return  # what has no slash comes inside the adapter's package
    free = _free(spec)
    if free is None or _small(spec.model, spec.revision, free):
        return
    # Most models are small, or come with the adapter: what counts is imported where it must.
    from mvw_cli.cost.shape import shape_of
    from mvw_cli.machine.placement import Placement, installed_first, smallest_change

    try:
        config = adapter.shape(spec)
        if getattr(config, "quantization_config", None) is not None:
            return  # smaller than its shape, and by how much is for the method to know
        shape = shape_of(adapter, config)
    except NotFetched:
        raise  # loading would ask for the same file, and wait for the network as long again
    except Exception:  # of adapters by others, too
        return
    placement = Placement(
        shape,
        dtype=shape.dtype if spec.dtype == "auto" else spec.dtype,
        device=spec.device,
        device_map=spec.device_map,
        quantization=spec.quantization,
        random_weights=spec.random_weights,
    )
    if placement.needed <= free:
        return
    where = "" if spec.device == "auto" else f" on {spec.device}"
    if spec.device_map is not None and gpu_count():
        where = " of all GPUs" if spec.quantization else " of all GPUs and of the machine"
    size = readable_bytes(placement.needed)
    facts = gather()
    changes = smallest_change(placement, facts)
    hint = "mvw list profiles"
    if changes is not None:
        hint = installed_first(changes, facts, _command(changes))
    raise OutOfMemory(
        f"{spec.model} does not fit into the free memory{where}.",
        cause=f"Its weights take {size} in {placement.held_in}; {readable_bytes(free)} free.",
        hint=hint,
    )


def _free(spec: ModelSpec) -> int | None:
    """Return what is free where the weights are to go, or None where that is not known.

    What GPUs have no room for, accelerate keeps in the machine's memory: slow, but it runs, unless
    the weights are quantised.
    """
    if spec.device_map is None or not gpu_count():
        return free_memory(spec.device)
    gpus = [free_memory(f"cuda:{index}") for index in range(gpu_count())]
    memory = 0 if spec.quantization else free_memory("cpu")
    known = [one for one in gpus if one is not None]
    if memory is None or len(known) < len(gpus):
        return None
    return sum(known) + int(OFFLOADED * memory)


def _small(model: str, revision: str | None, free: int) -> bool:
    """Whether the files of a checkpoint are so small that there is nothing to count."""
    held = locate_weights(model, revision)
    return 0 < held.size_bytes * _PLENTY <= free and not (held.missing or held.damaged)


def _command(changes: dict[str, str | None]) -> str:
    """Write the command of the user with these keys changed."""
    words = ["mvw", "infer", "IMAGE", "QUESTION"]
    for key, value in changes.items():
        words += ["--set", f"{key}={'null' if value is None else value}"]
    return shlex.join(words)
