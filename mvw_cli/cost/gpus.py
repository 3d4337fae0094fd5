"""Published rates of GPUs that people rent or own, for bounds of a device that is not at hand.

Rates are dense, of matrix units that accumulate in float32, as PyTorch's products of matrices use
them; float32 is that of the plain units, since TF32 is off by default. Where sources give sparse
rates alone, half of that is taken. Nothing is reached by a real program: bounds stay bounds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from mvw_cli.cost.case import Device
from mvw_cli.errors import UsageProblem

GIB = 1 << 30
_VENDORS = frozenset({"nvidia", "amd", "geforce", "tesla", "instinct", "generation", "gpu"})
_SYNONYMS = {"sxm2": "sxm", "sxm4": "sxm", "sxm5": "sxm", "sxm6": "sxm"}
_LISTED = 3


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as its maker publishes it."""

    name: str
    gigabytes_per_s: float
    tera_bf16: float | None
    """TFLOP/s in bfloat16; None where it has no matrix units for it."""
    tera_fp16: float
    tera_fp32: float | None
    """None where sources contradict each other."""
    memory: int
    """GiB, as it is sold."""
    source: str
    others: tuple[str, ...] = ()
    """Names that also stand for it."""


_A100 = "NVIDIA A100 datasheet"
_H100 = "NVIDIA H100 datasheet"
_GA102 = "NVIDIA Ampere GA102 whitepaper"
_ADA = "NVIDIA Ada GPU architecture whitepaper"
_VOLTA = "NVIDIA V100 datasheet"

GPUS = (
    Gpu("A100 SXM 80GB", 2039, 312, 312, 19.5, 80, _A100, ("A100", "A100 80GB", "A100 SXM")),
    Gpu("A100 PCIe 80GB", 1935, 312, 312, 19.5, 80, _A100, ("A100 PCIe",)),
    Gpu("A100 SXM 40GB", 1555, 312, 312, 19.5, 40, _A100, ("A100 40GB",)),
    Gpu("A100 PCIe 40GB", 1555, 312, 312, 19.5, 40, _A100),
    Gpu("H100 SXM", 3350, 989.4, 989.4, 66.9, 80, "NVIDIA H100 architecture whitepaper",
        ("H100", "H100 80GB HBM3", "H100 SXM 80GB", "H100 80GB")),
    Gpu("H100 PCIe", 2000, 756, 756, 51.2, 80, "NVIDIA H100 architecture whitepaper",
        ("H100 PCIe 80GB",)),
    Gpu("H100 NVL", 3900, 835, 835, 60, 94, _H100),
    Gpu("H200 SXM", 4800, 989, 989, 67, 141, "NVIDIA H200 datasheet", ("H200",)),
    Gpu("H200 NVL", 4800, 835, 835, 60, 141, "NVIDIA H200 datasheet"),
    Gpu("B200", 8000, 2250, 2250, None, 180, "NVIDIA DGX B200 datasheet, an eighth of the system"),
    Gpu("L4", 300, 121, 121, 30.3, 24, "NVIDIA L4 datasheet"),
    Gpu("L40", 864, 181, 181, 90.5, 48, "NVIDIA L40 datasheet"),
    Gpu("L40S", 864, 362, 362, 91.6, 48, "NVIDIA L40S datasheet"),
    Gpu("A10", 600, 125, 125, 31.2, 24, "NVIDIA A10 datasheet"),
    Gpu("A10G", 600, 70, 70, 35, 24, "NVIDIA A10G datasheet, for AWS"),
    Gpu("A30", 933, 165, 165, 10.3, 24, "NVIDIA A30 datasheet"),
    Gpu("A40", 696, 149.7, 149.7, 37.4, 48, "NVIDIA A40 datasheet"),
    Gpu("T4", 320, None, 65, 8.1, 16, "NVIDIA Turing architecture whitepaper"),
    Gpu("V100 SXM 32GB", 900, None, 125, 15.7, 32, _VOLTA, ("V100", "V100 SXM", "V100 32GB")),
    Gpu("V100 SXM 16GB", 900, None, 125, 15.7, 16, _VOLTA, ("V100 16GB",)),
    Gpu("V100 PCIe 32GB", 900, None, 112, 14, 32, _VOLTA, ("V100 PCIe",)),
    Gpu("V100 PCIe 16GB", 900, None, 112, 14, 16, _VOLTA),
    Gpu("RTX 3090", 936, 71, 71, 35.6, 24, _GA102, ("3090",)),
    Gpu("RTX A6000", 768, 154.8, 154.8, 38.7, 48, _GA102, ("A6000",)),
    Gpu("RTX 4090", 1008, 165.2, 165.2, 82.6, 24, _ADA, ("4090",)),
    Gpu("RTX 6000 Ada", 960, 364.2, 364.2, 91.1, 48, _ADA, ("6000 Ada",)),
    Gpu("RTX 5090", 1792, 209.5, 209.5, 104.8, 32,
        "NVIDIA RTX Blackwell GPU architecture whitepaper", ("5090",)),
    Gpu("MI300X", 5300, 1307.4, 1307.4, 163.4, 192, "AMD Instinct MI300X data sheet",
        ("MI300X OAM",)),
    Gpu("MI325X", 6000, 1307.4, 1307.4, 163.4, 256, "AMD Instinct MI325X data sheet",
        ("MI325X OAM",)),
)  # fmt: skip


def named_gpu(name: str, dtype: str) -> Device:
    """Find a GPU by its name, as people or CUDA write it.

    Args:
        dtype: `float32`, `bfloat16` or `float16`, whose rate is taken.

    Raises:
        UsageProblem: unknown name, or no rate in that dtype.
    """
    gpu = _known().get(_words(name))
    if gpu is None:
        near = _nearest(name)
        raise UsageProblem(
            f"--gpu {name}: there are no figures for this GPU",
            cause=f"known ones that are near: {', '.join(near)}",
            hint=f'mvw profile --plan --gpu "{near[0]}"',
        )
    tera = {"bfloat16": gpu.tera_bf16, "float16": gpu.tera_fp16, "float32": gpu.tera_fp32}[dtype]
    if tera is None:
        raise UsageProblem(
            f"--gpu {gpu.name}: there is no published rate in {dtype}",
            cause="It has no matrix units for it."
            if dtype == "bfloat16"
            else "What is published differs from place to place.",
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


def _known() -> dict[frozenset[str], Gpu]:
    return {_words(name): gpu for gpu in GPUS for name in (gpu.name, *gpu.others)}


def _words(name: str) -> frozenset[str]:
    """Take a name apart: its words in any order, without vendors and spelling."""
    spaced = re.sub(r"\b(rtx)(?=[\da])", r"\1 ", name.lower())
    words = re.findall(r"[a-z0-9]+", re.sub(r"(\d+) ?(gb|gib)\b", r"\1gb", spaced))
    return frozenset(_SYNONYMS.get(word, word) for word in words) - _VENDORS


def _nearest(name: str) -> list[str]:
    """List names that look alike, and the best known ones where none does."""
    spelled = {one.lower(): gpu.name for gpu in GPUS for one in (gpu.name, *gpu.others)}
    wanted = " ".join(word for word in name.lower().split() if word not in _VENDORS)
    near = get_close_matches(wanted, spelled, n=3 * _LISTED, cutoff=0.5)
    found = list(dict.fromkeys(spelled[one] for one in near))
    return found[:_LISTED] or [gpu.name for gpu in GPUS if gpu.name in ("H100 SXM", "L4", "T4")]
