"""Published rates of GPUs that people rent or own, for bounds of a device that is not at hand.

Rates are dense, of matrix units that accumulate in float32, as PyTorch's products of matrices use
them; float32 is that of the plain units, since TF32 is off by default. Where sources give sparse
rates alone, half of that is taken. Nothing is reached by a real program: bounds stay bounds.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from mvw_cli.cost.case import Device
from mvw_cli.cost.shape import DTYPE_BYTES
from mvw_cli.errors import UsageProblem
from mvw_cli.text import closest

GIB = 1 << 30
_VENDORS = frozenset({"nvidia", "amd", "geforce", "tesla", "instinct", "generation", "gpu"})
_SYNONYMS = {"sxm2": "sxm", "sxm4": "sxm", "sxm5": "sxm", "sxm6": "sxm"}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as its maker publishes it."""

    names: tuple[str, ...]
    """The first is its own; the others also stand for it."""
    gigabytes_per_s: float
    tera: dict[str, float | None]
    """TFLOP/s by dtype; None where it has no matrix units for it, or where sources disagree."""
    memory: int
    """GiB, as it is sold."""
    source: str

    @property
    def name(self) -> str:
        return self.names[0]


def _published() -> Iterator[Gpu]:
    """Read the table that lies beside this module; an empty cell is a rate that nobody gives."""
    table = (files(__package__) / "gpus.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(table.splitlines()):
        rates = {dtype: float(row[dtype]) if row[dtype] else None for dtype in DTYPE_BYTES}
        names = tuple(row["names"].split("; "))
        bandwidth, memory = float(row["gigabytes_per_s"]), int(row["gib"])
        yield Gpu(names, bandwidth, rates, memory, row["source"])


GPUS = tuple(_published())


def named_gpu(name: str, dtype: str) -> Device:
    """Find a GPU by its name, as people or CUDA write it.

    Args:
        dtype: `float32`, `bfloat16` or `float16`, whose rate is taken.

    Raises:
        UsageProblem: unknown name, or no rate in that dtype.
    """
    known = {_words(spelled): gpu for gpu in GPUS for spelled in gpu.names}
    gpu = known.get(_words(name))
    if gpu is None:
        spelled = {spelled: gpu.name for gpu in GPUS for spelled in gpu.names}
        wanted = " ".join(word for word in name.split() if word.lower() not in _VENDORS)
        near = spelled.get(closest(wanted, spelled) or "")
        listing = f"known: {', '.join(gpu.name for gpu in GPUS)}"
        raise UsageProblem(
            f"--gpu {name}: there are no figures for this GPU",
            cause=f"did you mean `{near}`?" if near else listing,
            hint=f'mvw profile --plan --gpu "{near or GPUS[0].name}"',
        )
    tera = gpu.tera[dtype]
    if tera is None:
        raise UsageProblem(
            f"--gpu {gpu.name}: there is no published rate in {dtype}",
            cause="it has no matrix units for it, or sources disagree",
            hint=f'mvw profile --plan --gpu "{gpu.name}" --set dtype=float16',
        )
    return Device(
        name=gpu.name,
        source="published",
        bandwidth_bytes_per_s=gpu.gigabytes_per_s * 1e9,
        flops_per_s=tera * 1e12,
        launch_s=None,
        memory_bytes=gpu.memory * GIB,
        reference=gpu.source,
    )


def _words(name: str) -> frozenset[str]:
    """Take a name apart: its words in any order, without vendors and spelling."""
    spaced = re.sub(r"\b(rtx)(?=[\da])", r"\1 ", name.lower())
    words = re.findall(r"[a-z0-9]+", re.sub(r"(\d+) ?(gb|gib)\b", r"\1gb", spaced))
    return frozenset(_SYNONYMS.get(word, word) for word in words) - _VENDORS
