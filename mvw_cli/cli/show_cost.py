"""`mvw show --cost`: what the profile's model takes and what a withdrawal can win, text or JSON.

Everything comes from the model's configuration; no weights are read and no device is asked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mvw_cli import console
from mvw_cli.cli.process import mute_libraries
from mvw_cli.cost.bounds import matters_from_batch
from mvw_cli.cost.case import Case, ratio
from mvw_cli.cost.flops import flops_of
from mvw_cli.cost.shape import DTYPE_BYTES, weight_bytes
from mvw_cli.errors import BadImage, ModelProblem, UsageProblem
from mvw_cli.images.reading import fit, open_image
from mvw_cli.plugins import load_adapter
from mvw_cli.profiles.resolution import Resolved, model_spec
from mvw_cli.text import readable_bytes

DEFAULT_IMAGE = "1024x768"
TEXT_TOKENS = 512
"""Question and output so far, in the sequences that a decode step is counted over."""
SEQUENCES = (1, 8, 64)
_SIZE = re.compile(r"(\d{1,6})[xX\u00d7](\d{1,6})")


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one profile."""

    name: str | None
    model: str
    adapter: str
    image: tuple[int, int]
    """Width and height in pixels, as the processor gets it."""
    vision_tokens: int | None
    """None where the adapter can't tell."""
    case: Case

    def to_dict(self) -> dict[str, Any]:
        """Serialise; figures of an image are null where its vision tokens are not known."""
        shape, weights = self.case.shape, self.case.shape.weights
        size, known = DTYPE_BYTES[self.case.dtype], self.vision_tokens is not None
        before, after = self.case.steps(1, TEXT_TOKENS)
        image_bytes = shape.kv_elements(0, self.vision_tokens or 0) * size
        freed = before.kv_bytes - after.kv_bytes
        return {
            "profile": self.name,
            "adapter": self.adapter,
            "model": self.model,
            "dtype": self.case.dtype,
            "parameters": weights.total,
            "parameters_vision": weights.vision,
            "parameters_active": weights.active,
            "weight_bytes": {
                **{dtype: weight_bytes(weights, dtype) for dtype in DTYPE_BYTES},
                "8-bit": weight_bytes(weights, self.case.dtype, 8),
                "4-bit": weight_bytes(weights, self.case.dtype, 4),
            },
            "kv_bytes_per_token": shape.kv_elements_per_token() * size,
            "image_width_px": self.image[0],
            "image_height_px": self.image[1],
            "vision_tokens": self.vision_tokens,
            "kv_bytes_per_image": image_bytes if known else None,
            "text_tokens": TEXT_TOKENS,
            "kv_bytes_freed": freed if known else None,
            "decode_steps": [self._step(sequences) for sequences in SEQUENCES] if known else [],
            "speedup_bound_limit": ratio(before.kv_bytes, after.kv_bytes) if known else None,
            "sequences_where_it_matters": matters_from_batch(self.case) if known else None,
        }

    def _step(self, sequences: int) -> dict[str, Any]:
        before, after = self.case.steps(sequences, TEXT_TOKENS)
        return {
            "sequences": sequences,
            "weight_bytes_before": before.weight_bytes,
            "weight_bytes_after": after.weight_bytes,
            "kv_bytes_before": before.kv_bytes,
            "kv_bytes_after": after.kv_bytes,
            "kv_share_before": before.kv_bytes / before.bytes_moved,
            "kv_share_after": after.kv_bytes / after.bytes_moved,
            "speedup_bound": self.case.step_speedup(sequences),
        }


def report(resolved: Resolved, image: str | None) -> Report:
    """Count the model of a profile, for an image given as WIDTHxHEIGHT or as a file.

    Raises:
        UsageProblem: no model is named, or the size is none.
        BadImage: the file can't be read.
        ModelProblem: the configuration can't be had, or the model not be counted.
    """
    mute_libraries()
    profile = resolved.profile
    spec = model_spec(profile)
    width, height = image_size(image or DEFAULT_IMAGE, profile.images.max_pixels)
    adapter = load_adapter(profile.adapter)
    config = adapter.shape(spec)
    flops = flops_of(adapter, config)
    tokens: int | None = None
    try:
        tokens = adapter.image_tokens(config, width, height)
    except (BadImage, ModelProblem) as problem:
        console.note(f"{problem.message} {problem.cause or ''}".strip())
    return Report(
        name=resolved.name,
        model=profile.model or profile.adapter,
        adapter=profile.adapter,
        image=(width, height),
        vision_tokens=tokens,
        case=Case(
            flops,
            flops.shape.dtype if profile.dtype == "auto" else profile.dtype,
            question_tokens=TEXT_TOKENS,
            vision_tokens=tokens or 0,
            new_tokens=0,
            keep_mlp=profile.cross_attention == "mlp",
        ),
    )


def image_size(
    image: str,
    max_pixels: int | None,
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
    match = _SIZE.fullmatch(image)
    if match is None:
        return open_image(image, max_pixels=max_pixels).size
    width, height = int(match[1]), int(match[2])
    if not (width and height):
        raise UsageProblem(
            f"{image}: an image has at least one pixel a side",
            cause="a size is written WIDTHxHEIGHT",
            hint=hint,
        )
    return fit((width, height), max_pixels)


def write(report: Report) -> None:
    """Write the report as tables."""
    figures = report.to_dict()
    rows = [
        ["model", f"{figures['model']} (adapter {figures['adapter']})"],
        ["parameters", _billions(figures["parameters"])],
        ["read per token", _billions(figures["parameters_active"])],
        ["vision, read once", _billions(figures["parameters_vision"])],
        *(
            [f"weights in {kind}", readable_bytes(count)]
            for kind, count in figures["weight_bytes"].items()
        ),
        ["dtype of the figures below", figures["dtype"]],
        ["KV per text token", readable_bytes(figures["kv_bytes_per_token"])],
    ]
    width, height = report.image
    if report.vision_tokens is not None:
        rows += [
            [f"image of {width} x {height}", f"{report.vision_tokens} vision tokens"],
            ["KV per image", readable_bytes(figures["kv_bytes_per_image"])],
            ["freed by withdrawal", readable_bytes(figures["kv_bytes_freed"])],
        ]
    else:
        rows.append([f"image of {width} x {height}", "vision tokens not known"])
    console.table(["COST", report.name or report.model], rows)
    if report.vision_tokens is not None:
        _write_steps(report, figures)


def _write_steps(report: Report, figures: dict[str, Any]) -> None:
    rows = []
    for step in figures["decode_steps"]:
        before = step["weight_bytes_before"] + step["kv_bytes_before"]
        after = step["weight_bytes_after"] + step["kv_bytes_after"]
        rows.append(
            [
                str(step["sequences"]),
                f"{readable_bytes(before)} ({step['kv_share_before']:.1%} KV)",
                f"{readable_bytes(after)} ({step['kv_share_after']:.1%} KV)",
                f"{step['speedup_bound']:.3f}x",
            ]
        )
    console.write("")
    console.table(["SEQUENCES", "A STEP READS", "AFTER WITHDRAWAL", "AT MOST FASTER"], rows)
    console.write("")
    console.write(_sentence(figures))


def _sentence(figures: dict[str, Any]) -> str:
    start = figures["sequences_where_it_matters"]
    text = f"With an image and {figures['text_tokens']} text tokens each, "
    if start is None:
        return f"{text}a decode step can't become 10% faster at any number of sequences."
    return (
        f"{text}a decode step can become 10% faster from {start} "
        f"sequence{'s' if start > 1 else ''} on, and {figures['speedup_bound_limit']:.2f}x at most."
    )


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 10**8 else f"{count / 1e6:.2f} million"
