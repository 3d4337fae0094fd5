"""How a checkpoint of transformers is read and put on its device.

It knows no processor and no prompt, and what goes wrong in transformers is told by `problems.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch

from mvw_cli import ModelProblem, ModelSpec, OutOfMemory, UsageProblem
from mvw_hf.problems import check_kind


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


def place(model: Any, device: torch.device, name: str) -> Any:
    """Put a model into eval mode on its device.

    Raises:
        OutOfMemory: its weights do not fit.
    """
    try:
        return model.eval().to(device)
    except torch.OutOfMemoryError as error:
        needed = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30
        raise OutOfMemory(
            f"{name} does not fit on {device}.",
            cause=f"Its weights take {needed:.1f} GiB in {model.dtype}.",
            hint=f"mvw infer scene.png QUESTION --model {name} --dtype bfloat16 --device cpu",
        ) from error


def build_random(build: Callable[[Any], Any], config: Any, dtype: str, device: torch.device) -> Any:
    """Build a model with random weights right on its device, the same ones each time.

    Args:
        build: makes the model of a configuration.
        dtype: `auto` takes the configuration's own, float32 where it has none.
    """
    config = deepcopy(config)
    wanted = (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
    config.dtype = wanted  # transformers' `from_config` goes by it, a class by PyTorch's default
    before = torch.get_default_dtype()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        torch.set_default_dtype(wanted)
        try:
            model = build(config)
        finally:
            torch.set_default_dtype(before)
    return model.to(wanted)


def complete(auto_class: Any, spec: ModelSpec) -> Any:
    """Load a checkpoint with a class of transformers, and all of it.

    From safetensors only, unless the spec allows pickles.

    Raises:
        ModelProblem: the checkpoint is of another architecture, or lacks weights;
            transformers would make random ones up.
    """
    check_kind(auto_class, spec.model or "", spec.revision)
    with _no_conversion():
        model, report = auto_class.from_pretrained(
            spec.model,
            revision=spec.revision,
            dtype=spec.dtype,
            # None prefers safetensors. What is pickled goes through PyTorch's `weights_only` then.
            use_safetensors=None if spec.allow_pickle else True,
            output_loading_info=True,
        )
    lacking = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if lacking:
        raise ModelProblem(
            f"{spec.model} lacks weights of {type(model).__name__}.",
            cause=f"{len(lacking)} tensors are missing or of another shape; first: {lacking[0]}.",
            hint="mvw list profiles",
        )
    return model


@contextmanager
def _no_conversion() -> Iterator[None]:
    """Keep transformers from asking a service to convert a repository that lacks safetensors.

    It would do so in the user's name and on its own (`auto_conversion` in
    transformers/safetensors_conversion.py).
    """
    name = "DISABLE_SAFETENSORS_CONVERSION"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
