"""Whether a model's weights fit into the memory that is free, before any of them is read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mvw_cli.adapter import Adapter, ModelSpec
from mvw_cli.cost.shape import BITS, DTYPE_BYTES, Shape, shape_of
from mvw_cli.errors import NotFetched, OutOfMemory
from mvw_cli.machine.checkpoint import locate_weights
from mvw_cli.machine.facts import OFFLOADED, Facts, free_memory, gather, gpu_count
from mvw_cli.text import readable_bytes

Changes = dict[str, str | None]
"""Profile keys and the values to give them; None takes a value away."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A model as a profile would hold it."""

    shape: Shape
    dtype: str
    """Of its weights: never auto."""
    device: str
    device_map: str | None = None
    quantization: str | None = None
    sequence: tuple[int, int] | None = None
    """Text and vision tokens of a sequence whose cache counts as well."""
    random_weights: bool = False

    @property
    def needed(self) -> int:
        """Bytes of weights and cache."""
        weights = self.shape.weights.total.bytes(self.dtype, BITS[self.quantization])
        if self.sequence is None:
            return int(weights)
        return int(weights) + self.shape.cache_bytes(*self.sequence, DTYPE_BYTES[self.dtype])

    @property
    def held_in(self) -> str:
        """The types that the weights are held in, in words."""
        return self.dtype if self.quantization is None else f"{self.dtype} and {self.quantization}"

    def free(self, facts: Facts) -> int | None:
        """Return what is free where it would lie, in bytes: on one device, or on all GPUs."""
        kind, gpu = facts.kind(self.device), facts.gpu(self.device)
        if kind != "cuda":
            return facts.mps_free_bytes if kind == "mps" else facts.memory_free_bytes
        if self.device_map is not None:
            return sum(one.free_bytes for one in facts.gpus)
        return None if gpu is None else gpu.free_bytes

    def spills(self, facts: Facts) -> bool:
        """Whether the machine's memory takes what the GPUs of a device map have no room for."""
        if self.device_map is None or self.quantization or facts.kind(self.device) != "cuda":
            return False
        rest = self.needed - (self.free(facts) or 0)
        return rest <= OFFLOADED * (facts.memory_free_bytes or 0)


def way_to_fit(
    placement: Placement, facts: Facts, command: Callable[[Changes], str], *, part: float = 1.0
) -> str:
    """Write the command that makes the smallest change after which a model fits, if one is known.

    Args:
        command: writes the command that was typed with keys changed.
        part: how much of the free memory it may take.
    """
    for changes in _candidates(placement, facts):
        values: dict[str, Any] = {**changes}
        changed = replace(placement, **values)
        free = changed.free(facts)
        if free is not None and changed.needed <= part * free:
            return command(changes)
    return "mvw list profiles"


def set_options(values: Mapping[str, Any]) -> list[str]:
    """Write values of a profile's keys as options of a command."""
    words = []
    for key, value in values.items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return words


def _candidates(placement: Placement, facts: Facts) -> Iterator[Changes]:
    """List changes, those first that change the answers least."""
    on_gpu = facts.kind(placement.device) == "cuda"
    emulated = on_gpu and not all(gpu.bfloat16 for gpu in facts.gpus)
    narrow: Changes = {}
    if placement.dtype == "float32":
        narrow = {"dtype": "float16" if emulated else "bfloat16"}
        yield narrow
    if not on_gpu:
        return
    spread: Changes = {"device_map": "auto"}
    if placement.device != "auto":
        spread["device"] = "auto"
    if not placement.random_weights:
        wider: list[Changes] = [narrow]
        if len(facts.gpus) > 1 and placement.device_map is None:
            wider = [narrow, {**narrow, **spread}]
            yield spread
            yield wider[1]
        bits = {None: ("8bit", "4bit"), "8bit": ("4bit",)}.get(placement.quantization, ())
        for changes in wider:
            for quantization in bits:
                yield {**changes, "quantization": quantization}
    on_cpu: Changes = {"device": "cpu"}
    if placement.dtype != "bfloat16":
        on_cpu["dtype"] = "bfloat16"
    on_cpu |= {key: None for key in ("device_map", "quantization") if getattr(placement, key)}
    yield on_cpu


_PLENTY = 8
"""Files this many times smaller than the free memory fit in whatever type they are read: float32
takes 4 times the memory of one byte, and the rest is for what may be read meanwhile."""


def check_fit(adapter: Adapter, spec: ModelSpec) -> None:
    """Compare what the weights take with what the device has free.

    Where something can't be found out it passes: what is wrong with a checkpoint is for loading it
    to tell, unless the hub does not give it.

    Raises:
        OutOfMemory: they take more.
        NotFetched: the hub does not give the configuration.
    """
    if spec.model is None:
        return
    free = _free(spec)
    if free is None or _small(spec.model, spec.revision, free):
        return
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
    command = ["mvw", "infer", "IMAGE", "QUESTION"]
    raise OutOfMemory(
        f"{spec.model} does not fit into the free memory{where}.",
        cause=f"Its weights take {size} in {placement.held_in}; {readable_bytes(free)} free.",
        hint=way_to_fit(
            placement, gather(), lambda changes: shlex.join([*command, *set_options(changes)])
        ),
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
