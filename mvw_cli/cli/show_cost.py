"""`mvw show --cost`: what the profile's model takes and what a withdrawal can win, text or JSON.

Everything comes from the model's configuration; no weights are read and no device is asked.
"""

from __future__ import annotations

import re
from typing import Any

from mvw_cli import console
from mvw_cli.adapter import ModelSpec
from mvw_cli.cli.process import mute_libraries
from mvw_cli.cost.bounds import matters_from_batch
from mvw_cli.cost.case import Case, ratio
from mvw_cli.cost.flops import flops_of
from mvw_cli.cost.shape import DTYPE_BYTES
from mvw_cli.errors import BadImage, ModelProblem, UsageProblem
from mvw_cli.images.reading import fit, open_image
from mvw_cli.plugins import load_adapter
from mvw_cli.profiles.resolution import Resolved, model_spec
from mvw_cli.text import check_paths, millions, plural, readable_bytes

DEFAULT_IMAGE = "1024x768"
TEXT_TOKENS = 512
"""Question and output so far, in the sequences that a decode step is counted over."""
SEQUENCES = (1, 8, 64)
_SIZE = re.compile(r"(\d{1,6})[xX\u00d7](\d{1,6})")


def figures(resolved: Resolved, image: str | None) -> dict[str, Any]:
    """Count the model of a profile, for an image given as WIDTHxHEIGHT or as a file.

    What depends on the image's vision tokens is None where the adapter can't tell them.

    Raises:
        UsageProblem: no model is named, or the size is none.
        BadImage: the file can't be read.
        ModelProblem: the configuration can't be had, or the model not be counted.
    """
    mute_libraries()
    profile = resolved.profile
    spec = model_spec(profile)
    width, height = image_size(image or DEFAULT_IMAGE, spec)
    adapter = load_adapter(profile.adapter)
    config = adapter.shape(spec)
    flops = flops_of(adapter, config)
    shape, weights = flops.shape, flops.shape.weights
    dtype = shape.dtype if profile.dtype == "auto" else profile.dtype
    tokens: int | None = None
    try:
        tokens = adapter.image_tokens(config, width, height)
    except (BadImage, ModelProblem) as problem:
        console.note(f"{problem.message} {problem.cause or ''}".strip())
    case = Case(
        flops,
        dtype,
        question_tokens=TEXT_TOKENS,
        vision_tokens=tokens or 0,
        new_tokens=0,
        keep_mlp=profile.cross_attention == "mlp",
    )
    before, after = case.steps(1, TEXT_TOKENS)
    known = tokens is not None
    freed = shape.kv_elements(TEXT_TOKENS, case.vision_tokens) - shape.kv_elements(TEXT_TOKENS, 0)
    image_bytes = shape.kv_elements(0, case.vision_tokens) * DTYPE_BYTES[dtype]
    return {
        "profile": resolved.name,
        "adapter": profile.adapter,
        "model": spec.model,
        "dtype": dtype,
        "parameters": weights.total.numbers,
        "parameters_vision": weights.vision,
        "parameters_active": weights.active,
        "weight_bytes": {
            **{held_in: int(weights.total.bytes(held_in)) for held_in in DTYPE_BYTES},
            "8-bit": int(weights.total.bytes(dtype, 8)),
            "4-bit": int(weights.total.bytes(dtype, 4)),
        },
        "kv_bytes_per_token": shape.kv_elements_per_token() * DTYPE_BYTES[dtype],
        "image_width_px": width,
        "image_height_px": height,
        "vision_tokens": tokens,
        "text_tokens": TEXT_TOKENS,
        "kv_bytes_per_image": image_bytes if known else None,
        "kv_bytes_freed": freed * DTYPE_BYTES[dtype] if known else None,
        "state_bytes": shape.state_bytes(DTYPE_BYTES[dtype]),
        "decode_steps": [_step(case, sequences) for sequences in SEQUENCES] if known else [],
        "speedup_bound_limit": ratio(before.kv_bytes, after.kv_bytes) if known else None,
        "sequences_where_it_matters": matters_from_batch(case) if known else None,
    }


def _step(case: Case, sequences: int) -> dict[str, Any]:
    before, after = case.steps(sequences, TEXT_TOKENS)
    return {
        "sequences": sequences,
        "weight_bytes_before": before.weight_bytes,
        "weight_bytes_after": after.weight_bytes,
        "kv_bytes_before": before.kv_bytes,
        "kv_bytes_after": after.kv_bytes,
        "kv_share_before": before.kv_bytes / before.bytes_moved,
        "kv_share_after": after.kv_bytes / after.bytes_moved,
        "speedup_bound": case.step_speedup(sequences),
    }


def image_size(
    image: str,
    spec: ModelSpec,
    *,
    hint: str = f"mvw show --cost --image {DEFAULT_IMAGE}",
) -> tuple[int, int]:
    """Return the width and height of the image as it reaches the processor.

    Args:
        hint: the command that was typed, with an image that has pixels.

    Raises:
        UsageProblem: a size of no pixels.
        BadImage: neither a size nor a file that can be read as an image.
    """
    check_paths([image])
    match = _SIZE.fullmatch(image)
    if match is None:
        limit = spec.max_decoded_pixels
        return open_image(image, max_pixels=spec.max_pixels, max_decoded_pixels=limit).size
    width, height = int(match[1]), int(match[2])
    if not (width and height):
        raise UsageProblem(
            f"{image}: an image has at least one pixel a side",
            cause="a size is written WIDTHxHEIGHT",
            hint=hint,
        )
    return fit((width, height), spec.max_pixels)


def write(figures: dict[str, Any]) -> None:
    """Write what `figures` has counted as tables."""
    image = f"image of {figures['image_width_px']} x {figures['image_height_px']}"
    tokens = figures["vision_tokens"]
    known = tokens is not None
    rows = [
        ["model", f"{figures['model']} (adapter {figures['adapter']})"],
        ["parameters", millions(figures["parameters"])],
        ["read per token", millions(figures["parameters_active"])],
        ["vision, read once", millions(figures["parameters_vision"])],
        *(
            [f"weights in {kind}", readable_bytes(count)]
            for kind, count in figures["weight_bytes"].items()
        ),
        ["dtype of the figures below", figures["dtype"]],
        ["KV per text token", readable_bytes(figures["kv_bytes_per_token"])],
        [image, f"{tokens} vision tokens" if known else "vision tokens not known"],
    ]
    if known:
        rows += [
            ["KV per image", readable_bytes(figures["kv_bytes_per_image"])],
            ["freed by withdrawal", readable_bytes(figures["kv_bytes_freed"])],
        ]
    if figures["state_bytes"]:
        rows.append(["recurrent states, kept", readable_bytes(figures["state_bytes"])])
    console.table(["COST", figures["profile"] or figures["model"]], rows)
    if not known:
        return
    steps = [
        [
            str(step["sequences"]),
            *(
                f"{readable_bytes(step[f'weight_bytes_{when}'] + step[f'kv_bytes_{when}'])} "
                f"({step[f'kv_share_{when}']:.1%} KV)"
                for when in ("before", "after")
            ),
            f"{step['speedup_bound']:.3f}x",
        ]
        for step in figures["decode_steps"]
    ]
    console.write("")
    console.table(["SEQUENCES", "A STEP READS", "AFTER WITHDRAWAL", "AT MOST FASTER"], steps)
    start = figures["sequences_where_it_matters"]
    faster = "can't become 10% faster at any number of sequences."
    if start is not None:
        faster = (
            f"can become 10% faster from {plural(start, 'sequence')} on, and "
            f"{figures['speedup_bound_limit']:.2f}x at most."
        )
    console.write(f"\nWith an image and {TEXT_TOKENS} text tokens each, a decode step {faster}")
