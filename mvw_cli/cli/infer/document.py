"""The JSON document of `mvw infer`: every figure under a key that carries its unit.

The keys are a promise: `schema_version` changes with them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mvw_cli.adapter import Answer
from mvw_cli.engine.types import Completion
from mvw_cli.environment import describe_environment

if TYPE_CHECKING:
    from mvw_cli.images.reading import ImageFile

SCHEMA_VERSION = 1


def document(
    *,
    question: str,
    images: Sequence[ImageFile],
    answer: Answer,
    completion: Completion,
    remarks: Sequence[str],
    phases_ms: dict[str, float],
    model: dict[str, Any],
    profile: dict[str, Any],
) -> str:
    """Write the document; `phases_ms` are the timings outside the engine."""
    withdrawal = completion.withdrawal
    timings = {**phases_ms, **asdict(completion.timings)}
    timings["total_ms"] = timings.pop("total_ms")  # the sum comes last
    content = {
        "schema_version": SCHEMA_VERSION,
        "question": question,
        "images": [_image(image) for image in images],
        "answer": answer.answer,
        "reasoning": answer.reasoning,
        "stages": dict(answer.stages),
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "vision_tokens": completion.vision_tokens,
        "generated_tokens": completion.generated_tokens,
        "withdrawal": None if withdrawal is None else asdict(withdrawal),
        "vision": asdict(completion.vision),
        "timings": timings,
        "memory": {
            "kv_bytes_prefill": completion.kv_bytes_prefill,
            "kv_bytes_end": completion.kv_bytes_end,
            "kv_allocated_bytes_end": completion.kv_allocated_bytes_end,
        },
        "remarks": list(remarks),
        "model": model,
        "profile": profile,
        "environment": asdict(describe_environment(model["device"])),
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def _image(file: ImageFile) -> dict[str, Any]:
    return {
        # A file name that is not UTF-8 must not make the document invalid.
        "path": os.fsencode(file.path).decode(errors="replace"),
        "sha256": file.sha256,
        "width_px": file.size[0],
        "height_px": file.size[1],
        "original_width_px": file.original_size[0],
        "original_height_px": file.original_size[1],
    }
