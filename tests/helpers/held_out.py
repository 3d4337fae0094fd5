"""Pictures of the embedded model's world, with questions and true answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mvw_shapes.samples import write_samples


@dataclass(frozen=True)
class Scene:
    image: Path
    question: str
    answer: str


def write_scenes(folder: Path, count: int, seed: int) -> list[Scene]:
    """Draw scenes into a folder."""
    lines = write_samples(folder, count, seed).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [Scene(folder / one["image"], one["question"], one["answer"]) for one in records]
