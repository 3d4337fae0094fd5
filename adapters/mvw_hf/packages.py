"""Packages that some checkpoints need beside mvw's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import transformers
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING_NAMES,
    get_image_processor_config,
)

from mvw_cli import ModelProblem

_WHY = {
    "torchvision": "Nothing else in transformers prepares the images of its family.",
    "compressed-tensors": "Its weights are packed in four bits, which that unpacks.",
}


def check_packages(name: str, missing: Sequence[str]) -> None:
    """Refuse a checkpoint before it is read.

    Raises:
        ModelProblem: a package is missing.
    """
    if missing:
        raise ModelProblem(
            f"{name} needs {' and '.join(missing)}, not installed here.",
            cause=" ".join(_WHY[one] for one in missing),
            hint=f"pip install {' '.join(missing)}",
        )


def needs_torchvision(name: str, revision: str | None, told: Mapping[str, Any]) -> bool:
    """Whether transformers has the checkpoint's image processor in no other form; asks no network.

    Args:
        told: its `config.json`.
    """
    kind = None
    with suppress(Exception):  # not here yet, or damaged, which is told where it is read
        own = get_image_processor_config(name, revision=revision, local_files_only=True)
        kind = own.get("image_processor_type")
    if isinstance(kind, str) and hasattr(transformers, kind):
        return not hasattr(transformers, f"{kind.removesuffix('Fast')}Pil")
    forms = IMAGE_PROCESSOR_MAPPING_NAMES.get(told.get("model_type"), {})
    return "torchvision" in forms and "pil" not in forms
