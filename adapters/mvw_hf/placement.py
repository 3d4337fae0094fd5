"""Where a model's weights go, and in how many bits: one device, or several through accelerate.

It reads no checkpoint. Which device a layer of a spread model runs on is for accelerate's hooks to
know; all that is asked here is where its inputs have to be.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from mvw_cli import ModelSpec, OutOfMemory, UsageProblem


def choose_device(device: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a device that is there.

    Raises:
        UsageProblem: there is no such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    chosen = torch.device(device)
    there = {
        "cpu": True,
        "cuda": (chosen.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(chosen.type, False):
        raise UsageProblem(
            f"There is no device {device} here.",
            cause=f"PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices.",
            hint="mvw infer scene.png QUESTION --device cpu",
        )
    return chosen


def check_placement(spec: ModelSpec) -> None:
    """Refuse what the spec asks for and this installation can't do, before anything is read.

    Raises:
        UsageProblem: a package is missing, or two wishes contradict each other.
    """
    if spec.device_map is None and spec.quantization is None:
        return
    if spec.random_weights:
        raise UsageProblem(
            "Random weights are neither quantised nor spread over several devices.",
            cause="They are made right on one device, in the type that dtype says.",
            hint="mvw infer IMAGE QUESTION --random-weights --dtype bfloat16",
        )
    if spec.quantization is not None:
        _check_quantization(spec.quantization)
    elif not _has_accelerate():
        raise UsageProblem(
            f"device_map: {spec.device_map} needs accelerate.",
            cause="It is not installed, or too old for this transformers.",
            hint='pip install --upgrade "mvw[multi-gpu]"',
        )


def _check_quantization(quantization: str) -> None:
    if not torch.cuda.is_available():
        raise UsageProblem(
            f"quantization: {quantization} needs a CUDA device.",
            cause=f"PyTorch {torch.__version__} sees none here.",
            hint="mvw infer IMAGE QUESTION --dtype bfloat16",
        )
    there = {"accelerate": _has_accelerate(), "bitsandbytes": _has_bitsandbytes()}
    missing = [name for name in there if not there[name]]
    if missing:
        raise UsageProblem(
            f"quantization: {quantization} needs {' and '.join(missing)}.",
            cause="Not installed, or too old for this transformers.",
            hint='pip install --upgrade "mvw[quantization]"',
        )


def placing(spec: ModelSpec) -> dict[str, Any]:
    """Say how `from_pretrained` is to place and hold the weights; nothing where they move later.

    Weights in 8 or 4 bits are made where they stay: they can't be moved.
    """
    options: dict[str, Any] = {}
    if spec.device_map is not None:
        options["device_map"] = spec.device_map
    if spec.quantization is not None:
        options["quantization_config"] = quantization_config(spec)
        device = choose_device(spec.device)
        if device.type == "cuda":
            device = torch.device("cuda", device.index or 0)
        options.setdefault("device_map", {"": device})
    return options


def quantization_config(spec: ModelSpec) -> Any:
    """Make the `BitsAndBytesConfig` of a spec: LLM.int8, or NF4 in blocks of 64 weights.

    4-bit weights are multiplied in the type that the spec names, bfloat16 where it names none;
    NF4 is QLoRA's type for weights that are distributed normally (arXiv:2305.14314, section 3).
    """
    from transformers import BitsAndBytesConfig

    if spec.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if spec.dtype == "auto" else spec.dtype,
    )


def place(model: Any, device: torch.device, name: str) -> Any:
    """Put a model into eval mode, and on its device unless it was placed while it was loaded.

    Raises:
        OutOfMemory: its weights do not fit.
    """
    model.eval()
    if device_map_of(model) or getattr(model, "quantization_method", None) == "bitsandbytes":
        return model
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        needed = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30
        raise OutOfMemory(
            f"{name} does not fit on {device}.",
            cause=f"Its weights take {needed:.1f} GiB in {model.dtype}.",
            hint=f"mvw infer scene.png QUESTION --model {name} --dtype bfloat16 --device cpu",
        ) from error


@contextmanager
def room_for(name: str) -> Iterator[None]:
    """Say in three lines that weights did not fit where they were placed while being loaded.

    Raises:
        OutOfMemory: a device had no room, or part of the weights was to stay on the disk.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        cause = next(iter(str(error).splitlines()), "The device has no more memory to give.")
        raise _too_large(name, cause) from error
    except ValueError as error:
        if "offloaded to the disk" not in str(error):
            raise
        raise on_disk(name) from error


def on_disk(name: str) -> OutOfMemory:
    """Refuse a model of which part would be read from the disk again for every token."""
    return _too_large(name, "Part of its weights would stay on the disk, read for every token.")


def _too_large(name: str, cause: str) -> OutOfMemory:
    return OutOfMemory(
        f"{name} does not fit where its weights are placed.",
        cause=cause,
        hint=shlex.join(["mvw", "doctor", "--set", f"model={name}", "--set", "device_map=auto"]),
    )


def device_map_of(model: Any) -> Mapping[str, Any]:
    """Say which device has which part of a spread model; empty for a model on one device."""
    return getattr(model, "hf_device_map", None) or {}


def input_device(model: Any) -> torch.device:
    """Say where a model's inputs have to be; its first parameters may lie elsewhere."""
    if not device_map_of(model):
        return torch.device(model.device)
    # Of the outermost hook of accelerate, which brings the logits back to the same place.
    return torch.device(model._hf_hook.execution_device)


def offloaded(model: Any) -> dict[str, int]:
    """Count the parts of a model that wait in memory (`cpu`) or on disk until a GPU reads them.

    Empty where nothing does: a model that runs on the CPU altogether waits nowhere.
    """
    places = [str(place) for place in device_map_of(model).values()]
    counts = {kind: places.count(kind) for kind in ("cpu", "disk")}
    if len(places) == counts["cpu"] + counts["disk"]:
        counts["cpu"] = 0
    return {kind: count for kind, count in counts.items() if count}


def _has_accelerate() -> bool:
    from transformers.utils import is_accelerate_available

    return bool(is_accelerate_available())


def _has_bitsandbytes() -> bool:
    from transformers.utils import is_bitsandbytes_available

    return bool(is_bitsandbytes_available())
