"""How a checkpoint of transformers is read, or made up, and on which devices its weights go."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError
from jinja2 import TemplateError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import __version__ as transformers_version
from transformers.integrations import peft as peft_integration
from transformers.models.auto import auto_factory
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.models.smolvlm import processing_smolvlm as smolvlm
from transformers.processing_utils import ProcessorMixin
from transformers.utils import (
    cached_file,
    is_accelerate_available,
    is_bitsandbytes_available,
    is_torchvision_available,
)

from mvw_cli import (
    ModelProblem,
    ModelSpec,
    MvwError,
    OutOfMemory,
    UsageProblem,
    checkpoint_problem,
    lora_base,
    on_the_hub,
)

NO_CODE = {"trust_remote_code": False}
"""Code that lies beside weights is not run. Without this, transformers asks whoever sits at the
terminal whether it may, and runs it after a yes (`resolve_trust_remote_code`)."""
APART = {
    "phi4_multimodal": "It reads images through LoRA weights in a folder of their own, "
    "vision-lora: transformers loads them apart, and mvw does not."
}
"""Architectures of which a checkpoint's weights are not all that reads an image."""
_ON_DISK = "Part of its weights would stay on the disk, read for every token."


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


def fetched(name: str, file: str, revision: str | None) -> str | None:
    """Fetch one file of a checkpoint; None where there is none, or the hub does not give it."""
    with suppress(OSError):  # the name is none that the hub could have
        path: str | None = cached_file(
            name,
            file,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        return path
    return None


def said(error: BaseException) -> str:
    """Return the first line of an error, with its type unless it is a sentence."""
    line = next(iter(str(error).strip().splitlines()), "")
    is_sentence = line and isinstance(error, OSError | ValueError | ImportError | TemplateError)
    return line if is_sentence else f"{type(error).__name__}: {line}".removesuffix(": ")


def check_files(spec: ModelSpec, *, weights: bool) -> None:
    """Look at a model's files before anything is read.

    Raises:
        ModelProblem: there is something else in their place.
    """
    problem = checkpoint_problem(str(spec.model), spec.revision, weights=weights)
    if problem is not None:
        raise problem


def of_base(spec: ModelSpec) -> ModelSpec:
    """Put the base model in the place of a LoRA adapter; other specs stay as they are.

    Raises:
        HfHubHTTPError, LocalEntryNotFoundError: the hub does not give a configuration.
    """
    name, revision = str(spec.model), spec.revision
    held = not on_the_hub(name) or try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(held, bool | str):
        try:
            here = is_offline_mode()
            hf_hub_download(name, "config.json", revision=revision, local_files_only=here)
        except RemoteEntryNotFoundError:
            fetched(name, "adapter_config.json", revision)
    base = lora_base(name, revision)
    return spec if base is None else replace(spec, model=base[0], revision=base[1])


def with_processor(spec: ModelSpec) -> ModelSpec:
    """Name what has the processor: a LoRA adapter, where it has one of its own, or its base."""
    base = of_base(spec)
    if base == spec:
        return spec
    from mvw_hf.problems import lack_of_a_processor

    return base if lack_of_a_processor(str(spec.model), spec.revision) else spec


class _NoVideo(dict[str, Any]):
    """Stands in a processor where its part for videos would be; it has no settings."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


@contextmanager
def without_video() -> Iterator[None]:
    """Within it, processors load without what only videos need where that is missing.

    Most families' processors have a part for videos, which needs torchvision; SmolVLM's spells the
    number of frames by num2words. Images need neither.
    """
    words = smolvlm.num2words
    smolvlm.num2words = words or str
    try:
        with nullcontext() if is_torchvision_available() else _without_their_part():
            yield
    finally:
        smolvlm.num2words = words


@contextmanager
def _without_their_part() -> Iterator[None]:
    load, check = AutoVideoProcessor.from_pretrained, ProcessorMixin.check_argument_for_proper_class

    def checked(self: ProcessorMixin, name: str, part: Any) -> Any:
        return None if isinstance(part, _NoVideo) else check(self, name, part)

    AutoVideoProcessor.from_pretrained = lambda *_, **__: _NoVideo()
    ProcessorMixin.check_argument_for_proper_class = checked
    try:
        yield
    finally:
        AutoVideoProcessor.from_pretrained = load
        ProcessorMixin.check_argument_for_proper_class = check


@contextmanager
def explained(name: str, revision: str | None = None, *, weights: bool = True) -> Iterator[None]:
    """Turn what transformers and the hub raise while loading into three lines.

    Args:
        weights: whether any are read, so that theirs may be the fault.

    Raises:
        ModelProblem: the checkpoint is gated, missing, unreachable, damaged, or not of a kind that
            is served.
    """
    try:
        yield
    except MvwError:
        raise
    except BaseException as error:
        # tokenizers panics on some damaged files, and that is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        from mvw_hf.problems import problem_of

        problem = problem_of(error, name, revision, weights=weights)
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

    The dtype `auto` is the configuration's own, float32 where it has none.
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


@contextmanager
def _alone() -> Iterator[None]:
    """Within it, transformers leaves a LoRA adapter alone that lies beside a model.

    Where peft is installed it would load it by itself, and releases differ in what hinders that.
    """
    modules = (peft_integration, auto_factory)
    before = [module.is_peft_available for module in modules]
    try:
        for module in modules:
            module.is_peft_available = lambda: False
        yield
    finally:
        for module, found in zip(modules, before, strict=True):
            module.is_peft_available = found


def complete(model_class: Any, spec: ModelSpec) -> PreTrainedModel:
    """Load a checkpoint with a class or auto class of transformers, and all of it.

    From safetensors only, unless the spec allows pickles. On the CPU, unless the spec has it
    spread over devices.

    Raises:
        ModelProblem: the checkpoint is of another architecture, or lacks weights;
            transformers would make random ones up.
        OutOfMemory: they do not fit where the spec has them placed.
    """
    base = of_base(spec)
    name = str(base.model)
    is_adapter = lora_base(str(spec.model), spec.revision) is not None
    check_kind(model_class, spec)
    # transformers would ask a service, in the user's name, to convert a repository that lacks
    # safetensors (`auto_conversion` in transformers/safetensors_conversion.py).
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    try:
        with _alone():
            model, report = model_class.from_pretrained(
                base.model,
                revision=base.revision,
                dtype=spec.dtype,
                # None prefers safetensors; what is pickled then goes through `weights_only`.
                use_safetensors=None if spec.allow_pickle else True,
                output_loading_info=True,
                **_thinker(base),
                **NO_CODE,
                **placing(spec),
            )
    except torch.OutOfMemoryError as error:
        raise _no_room(name, str(error).partition("\n")[0]) from error
    except ValueError as error:
        if "offloaded to the disk" in str(error):  # where weights are converted on the way
            raise _no_room(name, _ON_DISK) from error
        raise
    if "disk" in offloaded(model):
        raise _no_room(name, _ON_DISK)
    lacking = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if lacking:
        raise ModelProblem(
            f"{name} lacks weights of {type(model).__name__}.",
            cause=f"{len(lacking)} tensors are missing or of another shape; first: {lacking[0]}.",
            hint="mvw list profiles",
        )
    return tuned(model, spec) if is_adapter else model


def tuned(model: PreTrainedModel, spec: ModelSpec) -> PreTrainedModel:
    """Load a LoRA adapter over its base model, and add its changes to the weights.

    Quantised weights stay apart from the changes: their sum would be rounded once more. By peft
    itself: transformers' `load_adapter` finds neither pickles nor what DoRA adds.

    Raises:
        ModelProblem: the adapter is of another model, or of a kind that changes no weights.
        OSError: it has no weights that may be read.
    """
    from peft import PeftConfig, PeftModel

    name, revision = str(spec.model), spec.revision
    if not spec.allow_pickle and not fetched(name, "adapter_model.safetensors", revision):
        raise OSError("There is no adapter_model.safetensors.")
    config = PeftConfig.from_pretrained(name, revision=revision)
    if config.is_prompt_learning:
        raise ModelProblem(
            f"{name} is an adapter that changes the prompt, which mvw does not serve.",
            cause=f"Its peft_type is {config.peft_type.value}; LoRA and its kind change weights.",
            hint="mvw list adapters",
        )
    whole = PeftModel(model, config)
    try:
        told = whole.load_adapter(name, "default", revision=revision)
        strange = sorted(told.unexpected_keys) + sorted(told.missing_keys)
    except RuntimeError as error:
        strange = re.findall(r"size mismatch for (\S+):", str(error))
        if not strange:
            raise
    if strange:
        raise ModelProblem(
            f"{name} is a LoRA adapter of another model than {model.name_or_path}.",
            cause=f"{len(strange)} of its tensors do not go with those there; first: {strange[0]}.",
            hint="mvw list profiles",
        )
    merged = spec.quantization is None
    done: PreTrainedModel = whole.merge_and_unload() if merged else whole.get_base_model()
    return done


def _thinker(spec: ModelSpec) -> dict[str, Any]:
    """Name the part of a model that also speaks which reads and writes; empty for others."""
    told, _ = PreTrainedConfig.get_config_dict(str(spec.model), revision=spec.revision)
    if "thinker_config" not in told:
        return {}
    config = AutoConfig.from_pretrained(str(spec.model), revision=spec.revision, **NO_CODE)
    return {"config": config.thinker_config}


def check_kind(model_class: Any, spec: ModelSpec) -> None:
    """Compare a checkpoint's `model_type` with the class, or auto class, that is to hold it.

    Raises:
        ModelProblem: another architecture, or one that this transformers does not know.
        OSError: there is no configuration.
    """
    base = of_base(spec)
    name = str(base.model)
    # As it is: classes take any other's configuration with a warning.
    told, _ = PreTrainedConfig.get_config_dict(name, revision=base.revision)
    kind = told.get("thinker_config", told).get("model_type")
    if kind in APART:
        cause, hint = APART[kind], "mvw list profiles"
        raise ModelProblem(f"{name} is not served.", cause=cause, hint=hint)
    served = getattr(model_class, "_model_mapping", None)
    if served is None:
        types = {model_class.config_class.model_type}
    else:  # by its names: its values import a module for each
        types = {*served._model_mapping, *(config.model_type for config in served._extra_content)}
    if kind is None or kind in types:
        return
    if len(types) == 1:
        message = f"{name} is not of an architecture that this adapter serves."
        cause, hint = f"Its model_type is {kind}, and {types.pop()} is needed.", "mvw list adapters"
    elif kind in CONFIG_MAPPING:
        message = f"{name} is not a vision-language model."
        cause, hint = f"transformers has {kind} as another kind of model.", "mvw list profiles"
    else:
        message = f"{name} is of an architecture that transformers does not know."
        cause = f"Its model_type is {kind}, and transformers {transformers_version} has no such."
        hint = "pip install --upgrade transformers"
        if "auto_map" in told:
            cause = f"Its model_type is {kind}; code of its own lies beside it, which is not run."
            hint = "mvw list adapters"
    raise ModelProblem(message, cause=cause, hint=hint)


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
    gpus = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if chosen.type != "cpu" and (chosen.index or 0) >= gpus.get(chosen.type, 0):
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
    there = {"accelerate": is_accelerate_available()}
    if spec.quantization is None:
        key, extra = f"device_map: {spec.device_map}", "multi-gpu"
    else:
        key, extra = f"quantization: {spec.quantization}", "quantization"
        there["bitsandbytes"] = is_bitsandbytes_available()
        if not torch.cuda.is_available():
            raise UsageProblem(
                f"{key} needs a CUDA device.",
                cause=f"PyTorch {torch.__version__} sees none here.",
                hint="mvw infer IMAGE QUESTION --set quantization=null --dtype bfloat16",
            )
    missing = [name for name in there if not there[name]]
    if missing:
        raise UsageProblem(
            f"{key} needs {' and '.join(missing)}.",
            cause="Not installed, or too old for this transformers.",
            hint=f'pip install --upgrade "mvw[{extra}]"',
        )


def placing(spec: ModelSpec) -> dict[str, Any]:
    """Make the arguments of `from_pretrained` that place the weights; none where they move later.

    Weights in 8 or 4 bits are made where they stay: they can't be moved. 8 bits are LLM.int8, 4
    bits NF4, QLoRA's type for weights that are distributed normally (arXiv:2305.14314, section 3).
    """
    options: dict[str, Any] = {}
    if spec.quantization is not None:
        device = choose_device(spec.device)
        if device.type == "cuda":
            device = torch.device("cuda", device.index or 0)
        options["device_map"] = {"": device}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=spec.quantization == "8bit",
            load_in_4bit=spec.quantization == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16 if spec.dtype == "auto" else spec.dtype,
        )
    if spec.device_map is not None:
        options["device_map"] = spec.device_map
    return options


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
        cause = f"Its weights take {needed:.1f} GiB in {model.dtype}, more than {device} has left."
        raise _no_room(name, cause) from error


def _no_room(name: str, cause: str) -> OutOfMemory:
    doctor = ["mvw", "doctor", "--set", f"model={name}", "--set", "device_map=auto"]
    message = f"{name} does not fit where its weights are placed."
    return OutOfMemory(message, cause=cause, hint=shlex.join(doctor))


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
