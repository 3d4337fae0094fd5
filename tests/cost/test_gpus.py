"""Published figures of GPUs: found under every usual name, plausible, and each with its source."""

from __future__ import annotations

import pytest

from mvw_cli.cost.gpus import GPUS, named_gpu
from mvw_cli.errors import UsageProblem


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("h100-pcie", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40GB"),
        ("A100 80 GB", "A100 SXM 80GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_names_as_people_and_cuda_write_them(said: str, name: str) -> None:
    assert named_gpu(said, "float16").name == name


def test_what_is_told() -> None:
    device = named_gpu("H100", "bfloat16")
    assert device.source == "published"
    assert (device.bandwidth_bytes_per_s, device.flops_per_s) == (3.35e12, 989.4e12)
    assert (device.memory_bytes, device.launch_s) == (80 * 2**30, None)
    assert "whitepaper" in device.reference
    assert named_gpu("H100", "float32").flops_per_s == pytest.approx(66.9e12)


def test_no_name_stands_for_two() -> None:
    for gpu in GPUS:
        for name in gpu.names:
            assert named_gpu(name, "float16").name == gpu.name


def test_figures_are_plausible() -> None:
    """A slip of a unit or a sparse rate would fall out of these ranges."""
    for gpu in GPUS:
        bf16, fp16, fp32 = (gpu.tera[dtype] for dtype in ("bfloat16", "float16", "float32"))
        assert fp16 is not None
        assert 300 <= gpu.gigabytes_per_s <= 8000
        assert gpu.source
        assert bf16 in (None, fp16)
        assert 70 < fp16 * 1e12 / (gpu.gigabytes_per_s * 1e9) < 430  # FLOPs that a byte is worth
        if fp32 is not None:
            assert 1.9 < fp16 / fp32 < 17


@pytest.mark.parametrize(
    ("said", "near"),
    [
        ("H10", "H100 SXM"),
        ("RTX 4091", "RTX 4090"),
        ("NVIDIA L50S", "L40S"),
    ],
)
def test_an_unknown_gpu_names_the_nearest(said: str, near: str) -> None:
    with pytest.raises(UsageProblem, match=f"--gpu {said}") as caught:
        named_gpu(said, "float16")
    assert near in (caught.value.cause or "")
    assert (caught.value.hint or "").startswith('mvw profile --plan --gpu "')


def test_a_name_like_none_of_them() -> None:
    with pytest.raises(UsageProblem) as caught:
        named_gpu("toaster", "float16")
    assert "H100 SXM" in (caught.value.cause or "")


@pytest.mark.parametrize(("name", "dtype"), [("T4", "bfloat16"), ("V100", "bfloat16"),
                                             ("B200", "float32")])  # fmt: skip
def test_no_rate_in_a_dtype(name: str, dtype: str) -> None:
    with pytest.raises(UsageProblem, match=f"no published rate in {dtype}") as caught:
        named_gpu(name, dtype)
    assert "dtype=float16" in (caught.value.hint or "")
