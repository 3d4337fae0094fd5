"""How a checkpoint of transformers is read, or made up, and on which devices its weights go."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_accelerate_available, is_bitsandbytes_available

from mvw_cli import ModelProblem, ModelSpec, MvwError, OutOfMemory, UsageProblem, on_the_hub

NO_CODE = {"trust_remote_code": False}
"""Code that lies beside weights is not run. Without this, transformers asks whoever sits at the
terminal whether it may, and runs it after a yes (`resolve_trust_remote_code`)."""


def read_published(folder: Path, name: str) -> dict[str, Any] | None:
    """Read the `config.json` of a hub id from a folder that keeps some, or return None.

    Each is the checkpoint's own, as far as it shapes weights, cache or vision tokens; what is left
    out is the default of its class in transformers. The totals of parameters that follow are those
    that the hub shows (tests/cost/test_published.py).
    """
    file = folder / f"{name}.json"
    if not on_the_hub(name) or not file.is_file():
        return None
    told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return told


@contextmanager
def explained(
    name: str,
    revision: str | None = None,
    *,
    kinds: Collection[str] = (),
    weights: bool = True,
) -> Iterator[None]:
    """Turn what transformers and the hub raise while loading into three lines.

    Args:
        kinds: model types that are served without transformers knowing them.
        weights: whether any are read, so that theirs may be the fault.

    Raises:
        ModelProblem: the checkpoint is gated, missing, unreachable, damaged, or not of a kind that
            is served.
    """
    try:
        yield
    except MvwError:
        raise
    except Exception as error:
        from mvw_hf.problems import problem_of

        problem = problem_of(error, name, revision, kinds=kinds, weights=weights)
        if problem is None:
            raise
        raise problem from error


def build_random(
    build: Callable[[PreTrainedConfig], PreTrainedModel],
    config: PreTrainedConfig,
    dtype: str,
    device: torch.device,
) -> PreTrainedModel:
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


def complete(auto_class: Any, spec: ModelSpec) -> PreTrainedModel:
    """Load a checkpoint with a class of transformers, and all of it.

    From safetensors only, unless the spec allows pickles. On the CPU, unless the spec has it
    spread over devices.

    Args:
        auto_class: one that has `from_pretrained`: an auto class or a model.

    Raises:
        ModelProblem: the checkpoint is of another architecture, or lacks weights;
            transformers would make random ones up.
        OutOfMemory: they do not fit where the spec has them placed.
    """
    name = str(spec.model)
    check_kind(auto_class, name, spec.revision)
    with _no_conversion(), room_for(name):
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
        raise on_disk(name)
    lacking = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if lacking:
        raise ModelProblem(
            f"{name} lacks weights of {type(model).__name__}.",
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


def check_kind(model_class: Any, name: str, revision: str | None = None) -> None:
    """Compare a checkpoint's `model_type` with the class that is to hold it.

    Args:
        model_class: a class of transformers that has `from_pretrained`: an auto class or a model.

    Raises:
        ModelProblem: another architecture, or one that this transformers does not know.
        OSError: there is no configuration.
    """
    kind, served = model_type(name, revision), served_types(model_class)
    if kind is None or served is None or kind in served:
        return
    if len(served) > 1:
        from mvw_hf.problems import no_vision, unknown_architecture

        raise unknown_architecture(name, revision, kind) or no_vision(name, kind)
    raise ModelProblem(
        f"{name} is not of an architecture that this adapter serves.",
        cause=f"Its model_type is {kind}, and {next(iter(served))} is needed.",
        hint="mvw list adapters",
    )


def read_config(name: str, revision: str | None) -> dict[str, Any]:
    """Read `config.json` as it is; classes take any other's configuration with a warning.

    Raises:
        OSError: there is none.
    """
    told: dict[str, Any] = PreTrainedConfig.get_config_dict(name, revision=revision)[0]
    return told


def model_type(name: str, revision: str | None) -> str | None:
    """Read the `model_type` of a checkpoint; None where it has none.

    Raises:
        OSError: there is no configuration.
    """
    kind = read_config(name, revision).get("model_type")
    return kind if isinstance(kind, str) else None


def served_types(model_class: Any) -> set[str] | None:
    """Return the model types that a class of transformers holds; None where it does not tell."""
    mapping = getattr(model_class, "_model_mapping", None)
    if mapping is not None:
        return {config_class.model_type for config_class in mapping}
    config_class = getattr(model_class, "config_class", None)
    return None if config_class is None else {config_class.model_type}


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
            hint="mvw infer IMAGE QUESTION --device cpu",
        )
    return chosen


def check_placement(spec: ModelSpec) -> None:
    """Refuse what the spec asks for and this installation can't do, before anything is read.

    Raises:
        UsageProblem: a package is missing, or two settings contradict each other.
    """
    if spec.device_map is None and spec.quantization is None:
        return
    if spec.random_weights:
        raise UsageProblem(
            "Random weights are neither quantised nor spread over several devices.",
            cause="They are made right on one device, in the type that dtype says.",
            hint="mvw infer IMAGE QUESTION --set quantization=null --set device_map=null",
        )
    quantization = spec.quantization
    if quantization is None:
        if not is_accelerate_available():
            raise UsageProblem(
                f"device_map: {spec.device_map} needs accelerate.",
                cause="It is not installed, or too old for this transformers.",
                hint='pip install --upgrade "mvw[multi-gpu]"',
            )
        return
    if not torch.cuda.is_available():
        raise UsageProblem(
            f"quantization: {quantization} needs a CUDA device.",
            cause=f"PyTorch {torch.__version__} sees none here.",
            hint="mvw infer IMAGE QUESTION --dtype bfloat16",
        )
    there = {"accelerate": is_accelerate_available(), "bitsandbytes": is_bitsandbytes_available()}
    missing = [name for name in there if not there[name]]
    if missing:
        raise UsageProblem(
            f"quantization: {quantization} needs {' and '.join(missing)}.",
            cause="Not installed, or too old for this transformers.",
            hint='pip install --upgrade "mvw[quantization]"',
        )


def placing(spec: ModelSpec) -> dict[str, Any]:
    """Make the arguments of `from_pretrained` that place the weights; none where they move later.

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


def quantization_config(spec: ModelSpec) -> BitsAndBytesConfig:
    """Make the `BitsAndBytesConfig` of a spec: LLM.int8, or NF4 in blocks of 64 weights.

    4-bit weights are multiplied in the type that the spec names, bfloat16 where it names none;
    NF4 is QLoRA's type for weights that are distributed normally (arXiv:2305.14314, section 3).
    """
    if spec.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if spec.dtype == "auto" else spec.dtype,
    )


def place(model: PreTrainedModel, device: torch.device, name: str) -> PreTrainedModel:
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
            hint="mvw infer IMAGE QUESTION --dtype bfloat16 --device cpu",
        ) from error


@contextmanager
def room_for(name: str) -> Iterator[None]:
    """Explain that weights did not fit where they were placed while being loaded.

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


def device_map_of(model: PreTrainedModel) -> Mapping[str, int | str]:
    """Return the device of each part of a spread model; empty for a model on one device."""
    return getattr(model, "hf_device_map", None) or {}


def input_device(model: PreTrainedModel) -> torch.device:
    """Return where a model's inputs have to be; its first parameters may lie elsewhere."""
    if not device_map_of(model):
        return torch.device(model.device)
    # Of the outermost hook of accelerate, which brings the logits back to the same place.
    return torch.device(model._hf_hook.execution_device)


def offloaded(model: PreTrainedModel) -> dict[str, int]:
    """Count the parts of a model that wait in memory (`cpu`) or on disk until a GPU reads them.

    Empty where nothing does: a model that runs on the CPU altogether waits nowhere.
    """
    places = [str(place) for place in device_map_of(model).values()]
    counts = {kind: places.count(kind) for kind in ("cpu", "disk")}
    if len(places) == counts["cpu"] + counts["disk"]:
        counts["cpu"] = 0
    return {kind: count for kind, count in counts.items() if count}
