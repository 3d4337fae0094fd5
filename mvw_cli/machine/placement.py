"""What a model takes where a profile would hold it, and the smallest change after which it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mvw_cli.cost.shape import BITS, DTYPE_BYTES, Shape, weight_bytes
from mvw_cli.machine.facts import OFFLOADED, Facts

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
    cache: int = 0
    """Numbers in the KV cache that count as well."""
    random_weights: bool = False

    @property
    def needed(self) -> int:
        """Bytes of weights and cache."""
        weights = weight_bytes(self.shape.weights, self.dtype, BITS[self.quantization])
        return weights + self.cache * DTYPE_BYTES[self.dtype]

    @property
    def held_in(self) -> str:
        """The types that the weights are held in, in words."""
        return self.dtype if self.quantization is None else f"{self.dtype} and {self.quantization}"

    def kind(self, facts: Facts) -> str:
        """Return the kind of device that is meant on a machine: cuda, mps or cpu."""
        return facts.device if self.device == "auto" else self.device.partition(":")[0]

    def free(self, facts: Facts) -> int | None:
        """Return what is free where it would lie, in bytes: on one device, or on all GPUs."""
        if self.kind(facts) != "cuda":
            on_mps = self.kind(facts) == "mps"
            return facts.mps_free_bytes if on_mps else facts.memory_free_bytes
        if self.device_map is not None:
            return sum(gpu.free_bytes for gpu in facts.gpus)
        index = int(self.device.partition(":")[2] or 0)
        return facts.gpus[index].free_bytes if index < len(facts.gpus) else None

    def spills(self, facts: Facts) -> bool:
        """Whether the machine's memory takes what the GPUs of a device map have no room for."""
        if self.device_map is None or self.quantization or self.kind(facts) != "cuda":
            return False
        rest = self.needed - (self.free(facts) or 0)
        return rest <= OFFLOADED * (facts.memory_free_bytes or 0)

    def changed(self, changes: Changes) -> Placement:
        """Return the placement of the profile with these keys changed."""
        values: dict[str, Any] = {**changes}
        return replace(self, **values)


def smallest_change(placement: Placement, facts: Facts, *, part: float = 1.0) -> Changes | None:
    """Return the smallest change after which a model fits, or None where none is known.

    Args:
        part: how much of the free memory it may take.
    """
    for changes in _candidates(placement, facts):
        if _fits(placement.changed(changes), facts, part):
            return changes
    return _spilled(placement, facts) or _on_the_cpu(placement, facts, part)


def installed_first(changes: Changes, facts: Facts, command: str) -> str:
    """Put the installation of what a change needs before the command that makes the change."""
    extras = missing_extras(changes.get("device_map"), changes.get("quantization"), facts)
    return f'pip install "mvw[{",".join(extras)}]" && {command}' if extras else command


def missing_extras(device_map: str | None, quantization: str | None, facts: Facts) -> list[str]:
    """List the extras of mvw that these keys of a profile need and that are not installed."""
    missing = []
    if quantization is not None and None in (facts.accelerate, facts.bitsandbytes):
        missing.append("quantization")  # has accelerate, too
    elif device_map is not None and facts.accelerate is None:
        missing.append("multi-gpu")
    return missing


def _fits(placement: Placement, facts: Facts, part: float) -> bool:
    free = placement.free(facts)
    return free is not None and placement.needed <= part * free


def _candidates(placement: Placement, facts: Facts) -> Iterator[Changes]:
    """List changes, those first that change the answers least."""
    narrow: Changes = {"dtype": _half(placement, facts)} if placement.dtype == "float32" else {}
    if narrow:
        yield narrow
    if placement.kind(facts) != "cuda" or placement.random_weights:
        return
    spread: Changes = {}
    if len(facts.gpus) > 1 and placement.device_map is None:
        spread = _spread(placement)
        yield spread
        yield {**narrow, **spread}
    bits = {None: ("8bit", "4bit"), "8bit": ("4bit",)}.get(placement.quantization, ())
    for wider in ({}, spread) if spread else ({},):
        for quantization in bits:
            yield {**narrow, **wider, "quantization": quantization}


def _spread(placement: Placement) -> Changes:
    device: Changes = {} if placement.device == "auto" else {"device": "auto"}
    return {"device_map": "auto", **device}


def _half(placement: Placement, facts: Facts) -> str:
    emulated = placement.kind(facts) == "cuda" and not all(gpu.bfloat16 for gpu in facts.gpus)
    return "float16" if emulated else "bfloat16"


def _spilled(placement: Placement, facts: Facts) -> Changes | None:
    """Fill the GPUs and leave the rest in memory: slow, and still quicker than without a GPU."""
    if placement.kind(facts) != "cuda" or placement.random_weights:
        return None
    if placement.device_map or placement.quantization:
        return None
    changes = _spread(placement)
    if placement.dtype == "float32":
        changes["dtype"] = _half(placement, facts)
    return changes if placement.changed(changes).spills(facts) else None


def _on_the_cpu(placement: Placement, facts: Facts, part: float) -> Changes | None:
    if placement.kind(facts) != "cuda":
        return None
    changes: Changes = {"device": "cpu"}
    if placement.dtype != "bfloat16":
        changes["dtype"] = "bfloat16"
    changes |= {key: None for key in ("device_map", "quantization") if getattr(placement, key)}
    return changes if _fits(placement.changed(changes), facts, part) else None
