"""Measure the exact-answer accuracy of saved weights on held-out scenes, with plain `generate`.

It uses transformers alone, so the figure owes nothing to this project's own engine.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from batches import prompt
from mvw_shapes.samples import Example, sample_example
from mvw_shapes.scenes import draw
from reasoning import caption
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

_STAGE = r"<{0}>\s*(.*?)\s*</{0}>"


def stage(text: str, name: str) -> str:
    """Return the text of one stage of an answer, or nothing when the stage is missing."""
    found = re.search(_STAGE.format(name), text, re.DOTALL)
    return found.group(1) if found else ""


@torch.inference_mode()
def evaluate(weights: Path, *, count: int, seed: int, rows: int = 50) -> dict[str, Any]:
    """Ask one question about each of `count` held-out scenes and compare the conclusions."""
    processor = AutoProcessor.from_pretrained(weights)
    model = LlavaForConditionalGeneration.from_pretrained(weights).eval()
    rng = random.Random(f"held-out/{seed}")
    right: defaultdict[str, list[bool]] = defaultdict(list)
    captions: list[bool] = []
    wrong: list[dict[str, str]] = []
    for start in range(0, count, rows):
        examples = [sample_example(rng, held_out=True) for _ in range(min(rows, count - start))]
        texts = _answer(model, processor, examples, rng)
        for example, text in zip(examples, texts, strict=True):
            told = stage(text, "CONCLUSION")
            right[example.question.kind].append(told == example.answer)
            captions.append(stage(text, "CAPTION") == caption(example.scene))
            if told != example.answer:
                wrong.append({"question": example.text, "answer": example.answer, "told": text})
    hits = [hit for kind in right.values() for hit in kind]
    return {
        "held_out_scenes": len(hits),
        "accuracy": _share(hits),
        "caption_accuracy": _share(captions),
        "by_kind": {kind: _share(right[kind]) for kind in sorted(right)},
        "count_by_kind": {kind: len(right[kind]) for kind in sorted(right)},
        "wrong": wrong[:20],
    }


def _share(hits: list[bool]) -> float:
    return round(sum(hits) / len(hits), 4)


def _answer(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    examples: list[Example],
    rng: random.Random,
) -> list[str]:
    images = [draw(example.scene, rng) for example in examples]
    text = processor.tokenizer(
        [prompt(processor, example.text) for example in examples],
        padding=True,
        return_tensors="pt",
    )
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    ids = model.generate(
        input_ids=text["input_ids"], attention_mask=text["attention_mask"], pixel_values=pixels
    )
    answers = ids[:, text["input_ids"].shape[1] :]
    return [processor.tokenizer.decode(row, skip_special_tokens=True) for row in answers]
