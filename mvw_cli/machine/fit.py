"""Whether a model's weights fit into the memory that is free, before any of them is read.

Counted from the configuration alone (`cost.py`). Where something can't be found out it says
nothing: what is wrong with a checkpoint is for loading it to tell, unless the hub does not give it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

from mvw_cli.adapter import Adapter, ModelSpec
from mvw_cli.cost import Shape, shape_of
from mvw_cli.errors import NotFetched, OutOfMemory
from mvw_cli.machine.facts import OFFLOADED, free_memory, gather, gpu_count
from mvw_cli.machine.remedy import Changes, Load, installed_first, remedy
from mvw_cli.machine.weights import locate_weights
from mvw_cli.plugins import find_adapter
from mvw_cli.text import readable_bytes

_OTHERS = "mvw list profiles"
_PLENTY = 8
"""Files this many times smaller than the free memory fit in whatever type they are read: float32
takes 4 times the memory of one byte, and the rest is for what may be read meanwhile."""
_KEYS = ("model", "revision", "dtype", "device", "device_map", "quantization")
_SWITCHES = ("allow_pickle", "random_weights")


class DoesNotFit(OutOfMemory):
    """The weights are larger than what is free."""

    changes: Changes | None = None
    """The smallest change of the profile after which they fit, where one is known."""

    def retried(self, command: Callable[[Changes], str]) -> None:
        """Put the user's own command, with the change made, where the hint has a plain one.

        `command` writes it, given the changes; this module does not know commands.
        """
        if self.changes is not None:
            self.hint = installed_first(self.changes, gather(), command(self.changes))


def check_fit(name: str, adapter: Adapter, spec: ModelSpec) -> None:
    """Compare what the weights take with what the device has free.

    Args:
        name: of the adapter, as a profile has it.

    Raises:
        DoesNotFit: they take more.
        NotFetched: the hub does not give the configuration.
    """
    free = _free(spec)
    if spec.model is None or free is None or _small(name, spec, free):
        return
    try:
        config = adapter.shape(spec)
        if getattr(config, "quantization_config", None) is not None:
            return  # smaller than its shape, and by how much is for the method to know
        shape = shape_of(adapter, config)
    except NotFetched:
        raise  # loading would ask for the same file, and wait for the network as long again
    except Exception:  # of adapters by others, too; see the module's docstring
        return
    load = _load(spec, shape)
    if load.needed <= free:
        return
    where = "" if spec.device == "auto" else f" on {spec.device}"
    if spec.device_map is not None and gpu_count():
        where = " of all GPUs" if spec.quantization else " of all GPUs and of the machine"
    held = load.dtype if spec.quantization is None else f"{load.dtype} and {spec.quantization}"
    size = readable_bytes(load.needed)
    error = DoesNotFit(
        f"{spec.model} does not fit into the free memory{where}.",
        cause=f"Its weights take {size} in {held}; {readable_bytes(free)} free.",
        hint=_OTHERS,
    )
    error.changes = remedy(load, gather())
    error.retried(lambda changes: _command(name, spec, changes))
    raise error


def _load(spec: ModelSpec, shape: Shape) -> Load:
    return Load(
        shape,
        dtype=shape.dtype if spec.dtype == "auto" else spec.dtype,
        device=spec.device,
        device_map=spec.device_map,
        quantization=spec.quantization,
        random_weights=spec.random_weights,
    )


def _free(spec: ModelSpec) -> int | None:
    """Say what is free where the weights are to go, or None where that is not known.

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


def _small(name: str, spec: ModelSpec, free: int) -> bool:
    """Whether the files of a checkpoint are so small that there is nothing to count."""
    model = spec.model or ""
    if "/" not in model and model in find_adapter(name).checkpoints:
        return True  # it comes inside the adapter's package
    held = locate_weights(model, spec.revision)
    return 0 < held.size_bytes * _PLENTY <= free and not (held.missing or held.damaged)


def _command(name: str, spec: ModelSpec, changes: Changes) -> str:
    """Write a command that loads the same weights in the same way, but for the changes."""
    words = ["mvw", "infer", "IMAGE", "QUESTION", "--adapter", name]
    for key, value in {**{key: getattr(spec, key) for key in _KEYS}, **changes}.items():
        if value is None or (value == "auto" and key != "device_map"):
            continue
        words += ["--set", f"{key}={value}"] if key == "revision" else [_option(key), value]
    return shlex.join([*words, *(_option(key) for key in _SWITCHES if getattr(spec, key))])


def _option(key: str) -> str:
    return "--" + key.replace("_", "-")
