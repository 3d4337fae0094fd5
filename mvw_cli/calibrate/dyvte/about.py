"""What is to be known of trained gates beside their numbers: the metadata of their file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mvw_cli import __version__

if TYPE_CHECKING:
    from mvw_cli.calibrate.dyvte.parts import Parts
    from mvw_cli.calibrate.dyvte.report import Report


def about(report: Report) -> dict[str, Any]:
    """Say what is to be known of the gates' file: its metadata."""
    return {
        "mvw_version": __version__,
        "model": report.model["name"],
        "revision": report.model["revision"],
        "adapter": report.model["adapter"],
        "dtype": report.model["dtype"],
        "layers": report.model["layers"],
        "hidden_size": report.model["hidden_size"],
        "profile": report.profile["values"],
        "settings": report.settings,
        "data": report.data,
    }


def data_of(parts: Parts, left_out: int) -> dict[str, Any]:
    """Count the questions and images that gates were trained on and judged by."""
    entries = parts.table.entries

    def images(rows: Sequence[int]) -> int:
        return len({entries[row].images for row in rows})

    return {
        "questions": len(entries),
        "left_out": left_out,
        "training_questions": len(parts.training),
        "training_images": images(parts.training),
        "held_out_questions": len(parts.held_out),
        "held_out_images": images(parts.held_out),
        "answer_tokens_mean": sum(one.answer_tokens for one in entries) / len(entries),
        "vision_tokens_mean": sum(one.vision_tokens for one in entries) / len(entries),
    }
