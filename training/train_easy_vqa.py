"""Teach the embedded model easy-VQA beside its own scenes: `python training/train_easy_vqa.py`.

It goes on from the packaged weights, half of each step its own scenes so that they are kept, and
reads easy-VQA's train split alone (`pip install easy-vqa`). Its pictures come without their
contents; these follow from a picture's own questions and answers, or the picture is left out.
As in `train_shapes.py`, no answer is trained with vision tokens taken away on the way.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import starmap
from pathlib import Path
from typing import Any, Literal

import click
import fast_attention
import torch
from accuracy import evaluate, stage
from batches import Batch, pack, prompt, worn_pixels
from mvw_shapes.easy_vqa import COLOURS, KINDS, Question, load_questions, recognise, true_answer
from mvw_shapes.model import WEIGHTS
from mvw_shapes.samples import sample_example
from mvw_shapes.scenes import Shape, draw
from network import build_processor
from PIL import Image
from reasoning import STAGES, write
from train_shapes import RECORD, backward, build_optimizer, export, resume, save
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor


@dataclass(frozen=True, slots=True)
class Settings:
    """Fix everything that the weights depend on, the weights that it starts from aside."""

    seed: int = 21
    steps: int = 1600
    pictures: int = 32  # per step, half of them easy-VQA's
    rows: int = 16  # of the text in one forward pass; gradients are summed up
    learning_rate: float = 8e-4
    warm_up: int = 100  # steps
    weight_decay: float = 0.05
    clip: float = 1.0  # gradient norm
    bfloat16: bool = True
    checkpoint_every: int = 100  # steps


@dataclass(frozen=True, slots=True)
class Picture:
    """Hold a picture of the data set, what it shows, and the questions about it."""

    file: Path
    shape: Shape
    questions: tuple[str, ...]


def load_pictures() -> list[Picture]:
    """List the pictures of the train split whose contents follow from their questions."""
    asked: defaultdict[Path, list[tuple[str, str]]] = defaultdict(list)
    for text, answer, file in load_questions("train"):
        asked[file].append((text, answer))
    pictures = []
    for file, pairs in asked.items():
        shapes = [
            shape
            for shape in starmap(Shape, ((c, k) for c in COLOURS for k in KINDS))
            if all(_agrees(shape, text, answer) for text, answer in pairs)
        ]
        if len(shapes) == 1:
            pictures.append(Picture(file, shapes[0], tuple(text for text, _ in pairs)))
    return pictures


def _agrees(shape: Shape, text: str, answer: str) -> bool:
    question = recognise(text)
    assert question is not None, text
    if question.asks != "presence" and not question.named.matches(shape):
        return False  # "the red shape" says that it is red
    return true_answer(shape, question) == answer


def write_single(shape: Shape, question: Question) -> str:
    """Write the four stages that answer a question about a picture of easy-VQA."""
    named = f"{shape.colour} {shape.kind}"
    answer = true_answer(shape, question)
    if question.asks == "presence":
        plan = f"look for {question.named.plural}"
        found = "Yes" if (answer == "yes") != question.negated else "No"
        told = f"{named}: {question.named.plural} {found}."
        if question.negated:
            told += f" asked no, found {found}: {answer.capitalize()}."
    else:
        plan = f"name the {question.asks}"
        told = f"{named}: {question.asks} {answer}."
    texts = (f"I name the shape, then {plan}.", f"{named}.", told, answer.capitalize())
    return " ".join(f"<{name}> {text} </{name}>" for name, text in zip(STAGES, texts, strict=True))


def make_batch(
    processor: LlavaProcessor, pictures: Sequence[Picture], settings: Settings, step: int
) -> Batch:
    """Draw the batch of a step, a pure function of (seed, step): half scenes, half easy-VQA."""
    rng = random.Random(f"{settings.seed}/{step}")
    images, asked = [], []
    for number in range(settings.pictures):
        if number % 2:
            picture = rng.choice(pictures)
            images.append(Image.open(picture.file).convert("RGB"))
            text = rng.choice(picture.questions)
            question = recognise(text)
            assert question is not None
            asked.append((text, write_single(picture.shape, question)))
        else:
            example = sample_example(rng)
            images.append(draw(example.scene, rng))
            asked.append((example.text, write(example.scene, example.question)))
    tokenizer = processor.tokenizer
    starts, rows = [], []
    for text, told in asked:
        start = tokenizer(prompt(processor, text)).input_ids
        rows.append([*start, *tokenizer(told).input_ids, tokenizer.eos_token_id])
        starts.append(len(start))
    given = [slice(0, 0)] * len(rows)
    pixels = worn_pixels(processor, images, rng)
    return pack(rows, starts, given, pixels, pad=tokenizer.pad_token_id)


def learning_rate(settings: Settings, step: int) -> float:
    """Return the rate of a step: warm up, then fall to zero."""
    if step < settings.warm_up:
        return settings.learning_rate * (step + 1) / settings.warm_up
    done = (step - settings.warm_up) / (settings.steps - settings.warm_up)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def train(
    settings: Settings,
    run: Path,
    model: LlavaForConditionalGeneration,
    *,
    stop_after: int | None = None,
    say: Callable[[dict[str, Any]], None] = lambda record: None,
) -> None:
    """Train up to the last step, going on from the newest state in the run folder.

    `stop_after` ends early, at that step, as a kill would; the state then is the one saved last.
    """
    processor, pictures = build_processor(), load_pictures()
    fast_attention.use(model)
    optimizer = build_optimizer((model,), settings.learning_rate, settings.weight_decay)
    parts = {"model": model, "optimizer": optimizer}
    run.mkdir(parents=True, exist_ok=True)
    first, started = resume(settings, run, parts), time.monotonic()
    for step in range(first, settings.steps):
        if step == stop_after:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        batch = make_batch(processor, pictures, settings, step)
        loss = backward(model, batch, rows=settings.rows, bfloat16=settings.bfloat16)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % 20 == 0:
            spent = (time.monotonic() - started) / (done - first)
            say({"step": done, "loss": round(loss, 5), "step_s": round(spent, 3)})
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            save(settings, run, done, parts)


@torch.inference_mode()
def score(
    weights: Path, split: Literal["train", "test"], *, count: int | None = None
) -> dict[str, Any]:
    """Answer a split with plain `generate`, without this project's engine."""
    processor = AutoProcessor.from_pretrained(weights)
    model = LlavaForConditionalGeneration.from_pretrained(weights).eval()
    asked = load_questions(split)[:count]
    right, wrong = 0, []
    for start in range(0, len(asked), 100):
        part = asked[start : start + 100]
        text = processor.tokenizer(
            [prompt(processor, question) for question, _, _ in part],
            padding=True,
            return_tensors="pt",
        )
        images = [Image.open(file).convert("RGB") for _, _, file in part]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        ids = model.generate(**text, pixel_values=pixels)[:, text["input_ids"].shape[1] :]
        for (question, answer, _), row in zip(part, ids, strict=True):
            told = processor.tokenizer.decode(row, skip_special_tokens=True)
            if stage(told, "CONCLUSION").lower() == answer:
                right += 1
            else:
                wrong.append({"question": question, "answer": answer, "told": told})
    return {
        "questions": len(asked),
        "accuracy": round(right / len(asked), 4),
        "wrong": wrong[:20],
    }


@click.command()
@click.option("--run", type=click.Path(path_type=Path), default=Path("runs/easy-vqa"))
@click.option("--start", type=click.Path(path_type=Path), default=WEIGHTS)
@click.option("--weights", type=click.Path(path_type=Path), default=WEIGHTS)
@click.option("--threads", type=int, default=2)
def main(run: Path, start: Path, weights: Path, threads: int) -> None:
    """Train, export and evaluate; the test split is read once, at the end."""
    torch.set_num_threads(threads)
    settings = Settings()
    torch.manual_seed(settings.seed)
    model = LlavaForConditionalGeneration.from_pretrained(start)
    processor = build_processor()
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)

    def say(record: dict[str, Any]) -> None:
        click.echo(json.dumps(record))

    train(settings, run, model.train(), say=say)
    record = json.loads((start / RECORD).read_text())
    begun = hashlib.sha256((start / "model.safetensors").read_bytes()).hexdigest()
    export(model.eval(), weights, processor)
    record["held_out"] = evaluate(weights, count=1000, seed=1)
    record["easy_vqa"] = {
        "start_sha256": begun,
        "settings": asdict(settings),
        "test": score(weights, "test"),
    }
    (weights / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    say(record)


if __name__ == "__main__":
    main()
