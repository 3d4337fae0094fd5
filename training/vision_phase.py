"""Teach the vision tower to see before anyone asks: what lies in each cell of the grid.

As large models take a vision tower that has been trained by itself, so does this one. A linear
head reads the patches of each cell; it is thrown away afterwards.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from batches import pixels_of
from mvw_shapes.scenes import COLOURS, KINDS, Scene, sample_scene
from network import IMAGE_SIDE, PATCH
from transformers import LlavaForConditionalGeneration, LlavaProcessor

CELLS = 3  # per row and column
PATCHES = IMAGE_SIDE // PATCH  # per row and column
CLASSES = 1 + len(COLOURS) * len(KINDS)  # nothing, or a colour and a kind


@dataclass(frozen=True, slots=True)
class Sights:
    """Pictures, and what lies in their cells."""

    pixel_values: torch.Tensor  # (pictures, 3, H, W)
    cells: torch.Tensor  # (pictures, 9), class numbers


def make_sights(processor: LlavaProcessor, seed: int, step: int, *, pictures: int) -> Sights:
    """Draw the pictures of a step, a pure function of (seed, step)."""
    rng = random.Random(f"{seed}/{step}")
    scenes = [sample_scene(rng, held_out=False) for _ in range(pictures)]
    return Sights(pixels_of(processor, scenes, rng), torch.tensor([_classes(s) for s in scenes]))


def _classes(scene: Scene) -> list[int]:
    colours = list(COLOURS)
    return [
        0
        if shape is None
        else 1 + colours.index(shape.colour) * len(KINDS) + KINDS.index(shape.kind)
        for shape in scene.cells
    ]


def build_head(vision_width: int) -> torch.nn.Linear:
    """Build the head that is thrown away afterwards; the caller seeds torch."""
    return torch.nn.Linear(vision_width, CLASSES)


def seeing_loss(
    model: LlavaForConditionalGeneration, head: torch.nn.Linear, sights: Sights
) -> torch.Tensor:
    """Compute the cross-entropy of naming the cells, from the features that language will read."""
    hidden = model.model.vision_tower(sights.pixel_values, output_hidden_states=True).hidden_states
    patches = hidden[-1][:, 1:]  # (pictures, 144, D): the class token is not read
    side = PATCHES // CELLS
    grid = patches.float().unflatten(1, (CELLS, side, CELLS, side))
    cells = grid.mean((2, 4)).flatten(1, 2)  # (pictures, 9, D)
    return torch.nn.functional.cross_entropy(head(cells).flatten(0, 1), sights.cells.flatten())
