"""Checks of one profile: adapter, policy, device, dtype, attention, weights, and its size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mvw_cli.adapter import ModelSpec
from mvw_cli.cost.shape import Shape, shape_of
from mvw_cli.doctor.findings import Finding, again, refused
from mvw_cli.errors import MvwError
from mvw_cli.machine.checkpoint import (
    damage,
    download,
    locate_weights,
    lora_base,
    not_a_checkpoint,
)
from mvw_cli.machine.facts import Facts
from mvw_cli.machine.fit import Placement, way_to_fit
from mvw_cli.plugins import comes_with_adapter, load_adapter
from mvw_cli.profiles.resolution import Resolved, model_spec
from mvw_cli.text import readable_bytes

IMAGE = (1024, 768)
"""Width and height of the image that is allowed for, in pixels."""
TIGHT = 0.9
"""Part of the free memory beyond which activations and the allocator may have too little."""


def check_model(resolved: Resolved, facts: Facts) -> Iterator[Finding]:
    """Judge whether the model of a profile will run on this machine.

    What it needs is counted from its configuration; its weights are looked for and not read.
    """
    profile = resolved.profile
    try:
        spec = model_spec(profile)
    except MvwError as error:
        yield refused("profile", error)
        return
    yield Finding("profile", "ok", f"{resolved.name or 'flags'}: {spec.model}")
    device = check_device(resolved, facts)
    yield device
    yield from _placement(resolved, facts)
    yield _attention(resolved, facts)
    try:
        adapter = load_adapter(profile.adapter)
    except MvwError as error:
        yield refused("adapter", error)
        return
    yield Finding("adapter", "ok", profile.adapter)
    shape = vision = None
    try:
        config = adapter.shape(spec)
        shape = shape_of(adapter, config)
        vision = adapter.image_tokens(config, *IMAGE)
    except MvwError as error:
        if shape is None:
            found = f"{error.message} {error.cause or ''}".strip()
            yield Finding("size", "warning", f"not known: {found}", error.hint)
    if shape is not None:
        yield from _packages(adapter.missing_packages(spec))
    yield _weights(resolved, spec, shape, facts)
    if shape is not None and device.status == "ok":
        dtype = shape.dtype if profile.dtype == "auto" else profile.dtype
        yield _dtype(resolved, dtype, facts)
        yield _fit(resolved, shape, dtype, vision or 0, facts)


def check_device(resolved: Resolved, facts: Facts) -> Finding:
    """Judge whether the device that the profile names is there."""
    device = resolved.profile.device
    kind = facts.kind(device)
    missing = kind == "cuda" and facts.gpu(device) is None
    if missing or (kind == "mps" and not facts.mps):
        found = f"{device} is not there; PyTorch sees {len(facts.gpus)} CUDA devices"
        return Finding("profile's device", "problem", found, again(resolved, {"device": "auto"}))
    return Finding("profile's device", "ok", f"{kind} (auto)" if device == "auto" else device)


def _placement(resolved: Resolved, facts: Facts) -> Iterator[Finding]:
    """Judge device map and quantisation, where the profile asks for one."""
    profile = resolved.profile
    wanted = {"device_map": profile.device_map, "quantization": profile.quantization}
    asked = ", ".join(f"{key}: {value}" for key, value in wanted.items() if value is not None)
    if not asked:
        return
    needed = {"accelerate": facts.accelerate}
    if profile.quantization is not None:
        needed["bitsandbytes"] = facts.bitsandbytes
    if profile.quantization is not None and facts.kind(profile.device) != "cuda":
        found = f"{asked}: quantisation needs a CUDA device"
        yield Finding("placement", "problem", found, again(resolved, {"quantization": None}))
    elif None in needed.values():
        extra = "multi-gpu" if profile.quantization is None else "quantization"
        found = f"{asked}: needs {' and '.join(needed)}"
        yield Finding("placement", "problem", found, f'pip install --upgrade "mvw[{extra}]"')
    else:
        yield Finding("placement", "ok", asked)


def _packages(missing: Sequence[str]) -> Iterator[Finding]:
    """Name what the model's images or weights need beside mvw's own packages."""
    if missing:
        found = f"needs {' and '.join(missing)}, not installed"
        yield Finding("packages", "problem", found, f"pip install {' '.join(missing)}")


def _attention(resolved: Resolved, facts: Facts) -> Finding:
    profile = resolved.profile
    wanted, gpu = profile.attention, facts.gpu(profile.device)
    if wanted != "flash":
        return Finding("attention", "ok", wanted)
    way_out = again(resolved, {"attention": "auto"})
    if facts.kind(profile.device) != "cuda":
        return Finding("attention", "problem", "flash needs a CUDA device", way_out)
    if facts.flash_attn is None:
        found = "flash needs flash-attn, which is not installed"
        return Finding("attention", "problem", found, 'pip install "mvw[flash]"')
    if gpu is not None and not gpu.bfloat16:
        # Both came with compute capability 8.0 (README of Dao-AILab/flash-attention).
        found = f"flash needs a GPU of compute capability 8.0 or later, {gpu.name} is older"
        return Finding("attention", "problem", found, way_out)
    return Finding("attention", "ok", wanted)


def _weights(resolved: Resolved, spec: ModelSpec, shape: Shape | None, facts: Facts) -> Finding:
    model = spec.model or ""
    if comes_with_adapter(model, resolved.profile.adapter):
        return Finding("weights", "ok", "come with the adapter")
    # An adapter that has read a configuration knows what a checkpoint is.
    problem = (None if shape else not_a_checkpoint(model)) or damage(model, spec.revision)
    if problem is not None:
        return refused("weights", problem)
    model, revision = lora_base(model, spec.revision) or (model, spec.revision)
    held = locate_weights(model, revision)
    if held.folder is not None:
        return Finding("weights", "ok", f"{held.files} files, {readable_bytes(held.size_bytes)}")
    found = "not on this machine yet"
    size = 0.0 if shape is None else shape.weights.total.bytes(shape.dtype)
    found += f": {readable_bytes(size)} to download" if size else ""
    if facts.disk_free_bytes is not None and size > facts.disk_free_bytes:
        found += f", and {readable_bytes(facts.disk_free_bytes)} of disk are free"
        return Finding("weights", "problem", found, "hf cache ls")
    return Finding("weights", "warning", found, download(model))


def _dtype(resolved: Resolved, dtype: str, facts: Facts) -> Finding:
    profile = resolved.profile
    gpu = facts.gpu(profile.device)
    shown = f"{dtype} (the checkpoint's)" if profile.dtype == "auto" else dtype
    in_bfloat16 = again(resolved, {"dtype": "bfloat16"})
    if gpu is not None and dtype == "bfloat16" and not gpu.bfloat16:
        found = f"{shown}: {gpu.name} emulates it, slowly"
        return Finding("dtype", "warning", found, again(resolved, {"dtype": "float16"}))
    if facts.kind(profile.device) == "cpu" and dtype == "float16":
        found = f"{shown}: slow on a CPU, and not as wide as bfloat16"
        return Finding("dtype", "warning", found, in_bfloat16)
    if profile.attention == "flash" and dtype == "float32":
        return Finding("dtype", "problem", f"{shown}: flash needs float16 or bfloat16", in_bfloat16)
    return Finding("dtype", "ok", shown)


def _fit(resolved: Resolved, shape: Shape, dtype: str, vision: int, facts: Facts) -> Finding:
    profile = resolved.profile
    text = profile.generation.max_new_tokens
    placement = Placement(
        shape,
        dtype=dtype,
        device=profile.device,
        device_map=profile.device_map,
        quantization=profile.quantization,
        sequence=(text, vision),
    )

    def smaller(part: float = 1.0) -> str:
        return way_to_fit(placement, facts, lambda changes: again(resolved, changes), part=part)

    free, needed = placement.free(facts), placement.needed
    what = f"weights in {placement.held_in} and the cache of an image and {text} tokens"
    found = f"{readable_bytes(needed)} needed for {what}"
    if free is None:
        return Finding("fit", "ok", f"{found}; how much is free is not known")
    found += f", {readable_bytes(free)} free"
    if needed > free and placement.spills(facts):
        waiting = f"{readable_bytes(needed - free)} would wait in the machine's memory: slow"
        return Finding("fit", "warning", f"{found}; {waiting}", smaller())
    if needed > free:
        return Finding("fit", "problem", found, smaller())
    if needed > TIGHT * free:
        return Finding("fit", "warning", f"{found}: tight", smaller(TIGHT))
    return Finding("fit", "ok", found)
