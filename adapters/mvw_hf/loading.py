"""How a checkpoint of transformers is read, or a model of its shape made up.

It knows no processor and no prompt. Where the weights go is `placement.py`'s matter, and what goes
wrong in transformers is told by `problems.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch

from mvw_cli import ModelProblem, ModelSpec
from mvw_hf.placement import offloaded, on_disk, placing, room_for
from mvw_hf.problems import check_kind

NO_CODE = {"trust_remote_code": False}
"""Code that lies beside weights is not run. Without this, transformers asks whoever sits at the
terminal whether it may, and runs it after a yes (`resolve_trust_remote_code`)."""


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

    From safetensors only, unless the spec allows pickles. On the CPU, unless the spec has it
    spread over devices.

    Raises:
        ModelProblem: the checkpoint is of another architecture, or lacks weights;
            transformers would make random ones up.
        OutOfMemory: they do not fit where the spec has them placed.
    """
    check_kind(auto_class, spec.model or "", spec.revision)
    with _no_conversion(), room_for(spec.model or ""):
        model, report = auto_class.from_pretrained(
            spec.model,
            revision=spec.revision,
            dtype=spec.dtype,
            # None prefers safetensors. What is pickled goes through PyTorch's `weights_only` then.
            use_safetensors=None if spec.allow_pickle else True,
            output_loading_info=True,
            **NO_CODE,
            **placing(spec),
        )
    if "disk" in offloaded(model):
        raise on_disk(spec.model or "")
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
