"""Turn drawn examples into training batches; batch k is a pure function of (seed, k)."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from mvw_shapes.samples import sample_example
from mvw_shapes.scenes import Scene, draw
from network import VISION_TOKENS
from PIL import Image
from reasoning import write
from transformers import LlavaProcessor

Phase = Literal["language", "whole"]

IGNORED = -100  # the label that transformers' and torch's cross-entropy skip


@dataclass(frozen=True, slots=True)
class Batch:
    """Hold one step's input.

    Row i of the text belongs to picture i // (rows // pictures).
    """

    pixel_values: torch.Tensor | None  # (pictures, 3, H, W); None in the phase without pictures
    input_ids: torch.Tensor  # (B, T), padded on the right
    labels: torch.Tensor  # (B, T), IGNORED outside the answer
    lengths: torch.Tensor  # (B,), without the padding


def prompt(processor: LlavaProcessor, question: str) -> str:
    """Write the prompt for a question about one picture, with one tag per vision token."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return str(text).replace("<image>", "<image>" * VISION_TOKENS)


def make_batch(
    processor: LlavaProcessor, seed: int, step: int, *, phase: Phase, pictures: int, questions: int
) -> Batch:
    """Draw the batch of a step: some pictures, each with several questions, as the phase wants it.

    `language` has text alone: the caption is given, not learnt, and the rest of the answer follows
    from it. `whole` is what the model is asked for in the end.
    """
    rng = random.Random(f"{seed}/{step}")
    scenes, rows, starts, given = [], [], [], []
    image, caption, caption_end = processor.tokenizer.convert_tokens_to_ids(
        ["<image>", "<CAPTION>", "</CAPTION>"]
    )
    pad, eos = processor.tokenizer.pad_token_id, processor.tokenizer.eos_token_id
    for _ in range(pictures):
        first = sample_example(rng)
        examples = [first]
        examples += [sample_example(rng, scene=first.scene) for _ in range(questions - 1)]
        scenes.append(first.scene)
        for example in examples:
            asked = processor.tokenizer(prompt(processor, example.text)).input_ids
            told = [*processor.tokenizer(write(example.scene, example.question)).input_ids, eos]
            end = told.index(caption_end) + 1
            if phase == "language":
                asked = [token for token in asked if token != image]
            rows.append([*asked, *told])
            starts.append(len(asked))
            hidden = (told.index(caption) + 1, end) if phase == "language" else (0, 0)
            given.append(slice(*(len(asked) + place for place in hidden)))
    pixels = None if phase == "language" else pixels_of(processor, scenes, rng)
    return pack(rows, starts, given, pixels, pad=pad)


def pack(
    rows: Sequence[list[int]],
    starts: Sequence[int],
    given: Sequence[slice],
    pixels: torch.Tensor | None,
    *,
    pad: int,
) -> Batch:
    """Pad the rows of token ids; labels are what follows a row's start, what is given aside."""
    width = max(map(len, rows))
    input_ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    labels = torch.full_like(input_ids, IGNORED)
    for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
        labels[index, start : len(row)] = input_ids[index, start : len(row)]
        labels[index, given[index]] = IGNORED
    return Batch(pixels, input_ids, labels, torch.tensor([len(row) for row in rows]))


def pixels_of(processor: LlavaProcessor, scenes: list[Scene], rng: random.Random) -> torch.Tensor:
    """Draw scenes and wear the pictures a little: # (pictures, 3, H, W)."""
    return worn_pixels(processor, [draw(scene, rng) for scene in scenes], rng)


def worn_pixels(
    processor: LlavaProcessor, pictures: Sequence[Image.Image], rng: random.Random
) -> torch.Tensor:
    """Wear pictures a little: # (pictures, 3, H, W)."""
    images = [_worn(picture, rng) for picture in pictures]
    return _lit(processor.image_processor(images, return_tensors="pt")["pixel_values"], rng)


def _worn(image: Image.Image, rng: random.Random) -> Image.Image:
    """Treat some pictures as they are treated on their way to a user: saved as JPEG, resized."""
    draw_ = rng.random()
    if draw_ < 0.08:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(55, 95))
        return Image.open(buffer).convert("RGB")
    if draw_ < 0.16:
        side = rng.randint(120, 300)
        way = rng.choice((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC))
        return image.resize((side, side), way)
    return image


def _lit(pixels: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Vary brightness by picture and add faint noise; pixels are in [-1, 1]."""
    generator = torch.Generator().manual_seed(rng.getrandbits(48))
    count = len(pixels)
    gain = 1 - 0.06 * torch.rand(count, 1, 1, 1, generator=generator)
    level = 0.04 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = torch.randn(pixels.shape, generator=generator)
    return (pixels + 1) * gain - 1 + level * noise
