"""Train the embedded model: `python training/train_shapes.py`, again after a kill to go on.

Everything that decides the result is in `Settings`. As large models do, this one learns to see and
to reason apart, pictures without text and text without pictures, and then to do both. No answer is
ever trained with vision tokens taken away on the way: withdrawal stays training-free, so the
accuracy that it leaves is an honest measurement.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click
import fast_attention
import torch
from accuracy import evaluate
from batches import IGNORED, Batch, Phase, make_batch
from mvw_shapes.model import WEIGHTS
from network import build_model, build_processor
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from vision_phase import build_head, make_sights, seeing_loss

RECORD = "training.json"  # beside the weights: how they came about, and what they reach


@dataclass(frozen=True, slots=True)
class Settings:
    """Fix everything that the trained weights depend on."""

    seed: int = 20
    see_steps: int = 1200  # vision tower alone: what lies in each cell
    language_steps: int = 1600  # text alone: reasoning from a given caption
    whole_steps: int = 2400  # pictures and text: the whole answer
    sights: int = 64  # pictures per step while seeing is learnt
    pictures: int = 32  # per step afterwards
    questions: int = 1  # per picture
    rows: int = 16  # of the text in one forward pass; gradients are summed up
    learning_rate: float = 1.5e-3
    warm_up: int = 100  # steps
    weight_decay: float = 0.05
    clip: float = 1.0  # gradient norm
    bfloat16: bool = True  # autocast; weights and optimiser stay float32
    checkpoint_every: int = 200  # steps
    vision_layers: int = 3
    vision_width: int = 96
    text_layers: int = 4
    text_width: int = 160

    @property
    def steps(self) -> int:
        """All phases together."""
        return self.see_steps + self.language_steps + self.whole_steps

    def phase(self, step: int) -> Literal["see"] | Phase:
        """Return the phase that a step belongs to."""
        if step < self.see_steps:
            return "see"
        return "language" if step < self.see_steps + self.language_steps else "whole"


def learning_rate(settings: Settings, step: int) -> float:
    """Return the rate of a step: each phase warms up; the first and the last fall to zero."""
    starts = (0, settings.see_steps, settings.steps - settings.whole_steps, settings.steps)
    start, end = next((a, b) for a, b in itertools.pairwise(starts) if step < b)
    if step - start < settings.warm_up:
        return settings.learning_rate * (step - start + 1) / settings.warm_up
    if settings.phase(step) == "language":
        return settings.learning_rate
    done = (step - start - settings.warm_up) / max(1, end - start - settings.warm_up)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def backward(
    model: LlavaForConditionalGeneration, batch: Batch, *, rows: int, bfloat16: bool
) -> float:
    """Add the gradients of the mean cross-entropy of the answers' tokens, and return that loss.

    The text runs `rows` at a time, sorted by length, which saves padding and keeps the tensors
    small; the pictures run once for all their questions.
    """
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16)
    with autocast:
        features = _features(model, batch)  # (pictures, vision tokens, D)
    leaf = None if features is None else features.detach().requires_grad_()
    told = batch.labels != IGNORED
    lengths = batch.lengths
    total = 0.0
    order = lengths.argsort(stable=True)
    for start in range(0, len(order), rows):
        part = order[start : start + rows]
        width = int(lengths[part].max())
        first = int(told[part].any(0).nonzero()[0])
        vision = {}
        if leaf is not None:
            pictures = leaf[part // (len(order) // len(leaf))]
            vision["image"] = BaseModelOutputWithPooling(pooler_output=list(pictures))
        with autocast:
            # Padding is on the right and attention is causal, so no row needs a mask.
            logits = model(
                input_ids=batch.input_ids[part, : width - 1],
                mm_encoder_outputs=vision or None,
                logits_to_keep=width - first,
                use_cache=False,
            ).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1),
            batch.labels[part, first:width].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        loss = loss / told.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    if features is not None and leaf is not None:
        features.backward(leaf.grad)  # type: ignore[no-untyped-call]
    return total


def _features(model: LlavaForConditionalGeneration, batch: Batch) -> torch.Tensor | None:
    """Encode the pictures of a batch: # (pictures, vision tokens, D)."""
    if batch.pixel_values is None:
        return None
    return torch.stack(
        list(model.get_image_features(batch.pixel_values, return_dict=True).pooler_output)
    )


def build_optimizer(
    modules: Sequence[torch.nn.Module], learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """Build the optimiser; norms and biases do not decay."""
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for parameter in itertools.chain(*(module.parameters() for module in modules)):
        groups[parameter.ndim >= 2].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )


def _untrained(settings: Settings) -> LlavaForConditionalGeneration:
    return build_model(
        vision_layers=settings.vision_layers,
        vision_width=settings.vision_width,
        text_layers=settings.text_layers,
        text_width=settings.text_width,
    )


def train(
    settings: Settings,
    run: Path,
    *,
    stop_after: int | None = None,
    say: Callable[[dict[str, Any]], None] = lambda record: None,
) -> LlavaForConditionalGeneration:
    """Train up to the last step, going on from the newest state in the run folder.

    `stop_after` ends early, at that step, as a kill would; the state then is the one saved last.
    Raises ValueError when the folder belongs to a run with other settings.
    """
    run.mkdir(parents=True, exist_ok=True)
    processor = build_processor()
    torch.manual_seed(settings.seed)
    model = _untrained(settings).train()
    head = build_head(settings.vision_width)
    fast_attention.use(model)
    optimizer = build_optimizer((model, head), settings.learning_rate, settings.weight_decay)
    parts = {"model": model, "head": head, "optimizer": optimizer}
    first = resume(settings, run, parts)
    started = time.monotonic()
    for step in range(first, settings.steps):
        if step == stop_after:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        loss = _step(settings, step, processor, model, head)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % 20 == 0:
            spent = time.monotonic() - started
            say(
                {
                    "step": done,
                    "phase": settings.phase(step),
                    "loss": round(loss, 5),
                    "gradient_norm": round(norm.item(), 3),
                    "learning_rate": round(learning_rate(settings, step), 7),
                    "step_s": round(spent / (done - first), 4),
                }
            )
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            save(settings, run, done, parts)
    return model


def _step(
    settings: Settings,
    step: int,
    processor: LlavaProcessor,
    model: LlavaForConditionalGeneration,
    head: torch.nn.Linear,
) -> float:
    """Draw the data of a step and add its gradients; return the loss."""
    phase = settings.phase(step)
    if phase == "see":
        sights = make_sights(processor, settings.seed, step, pictures=settings.sights)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bfloat16):
            loss = seeing_loss(model, head, sights)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()
    batch = make_batch(
        processor,
        settings.seed,
        step,
        phase=phase,
        pictures=settings.pictures,
        questions=settings.questions,
    )
    return backward(model, batch, rows=settings.rows, bfloat16=settings.bfloat16)


def save(settings: Any, run: Path, step: int, parts: Mapping[str, Any]) -> None:
    """Write the state of everything that a run goes on from."""
    state = {name: part.state_dict() for name, part in parts.items()}
    # A kill in the middle of writing must leave the state before it whole.
    torch.save(state | {"settings": asdict(settings), "step": step}, run / "state.pt.part")
    os.replace(run / "state.pt.part", run / "state.pt")


def resume(settings: Any, run: Path, parts: Mapping[str, Any]) -> int:
    """Load what `save` wrote, and return the step that comes next.

    Raises ValueError when the folder belongs to a run with other settings.
    """
    if not (run / "state.pt").exists():
        return 0
    state = torch.load(run / "state.pt", weights_only=True)
    if state["settings"] != asdict(settings):
        raise ValueError(f"{run} holds a run with other settings; give another folder")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def export(
    model: LlavaForConditionalGeneration, directory: Path, processor: LlavaProcessor | None = None
) -> None:
    """Write the weights, the tokenizer and the processor as one transformers checkpoint."""
    model.save_pretrained(directory)
    (processor or build_processor()).save_pretrained(directory)
    # safetensors writes for the owner only, and an installed package is read by others.
    (directory / "model.safetensors").chmod(0o644)


def export_state(run: Path, directory: Path) -> int:
    """Export the newest state of a run that may still be going, and return its step."""
    state = torch.load(run / "state.pt", weights_only=True)
    settings = Settings(**state["settings"])
    model = _untrained(settings)
    model.load_state_dict(state["model"])
    export(model.eval(), directory)
    return int(state["step"])


@click.command()
@click.option("--run", type=click.Path(path_type=Path), default=Path("runs/shapes"))
@click.option("--weights", type=click.Path(path_type=Path), default=WEIGHTS)
@click.option("--bfloat16/--float32", default=True)
@click.option("--threads", type=int, default=2)
@click.option("--export-only", is_flag=True, help="Export the newest state and stop.")
def main(run: Path, weights: Path, bfloat16: bool, threads: int, export_only: bool) -> None:
    """Train, export and evaluate with the settings that the packaged weights come from."""
    torch.set_num_threads(threads)
    if export_only:
        click.echo(f"step {export_state(run, weights)} -> {weights}")
        return
    run.mkdir(parents=True, exist_ok=True)

    def say(record: dict[str, Any]) -> None:
        line = json.dumps(record)
        click.echo(line)
        with (run / "log.jsonl").open("a") as log:
            log.write(line + "\n")

    settings = Settings(bfloat16=bfloat16)
    export(train(settings, run, say=say).eval(), weights)
    record = {
        "settings": asdict(settings),
        "held_out": evaluate(weights, count=1000, seed=1),
    }
    (weights / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    say(record)


if __name__ == "__main__":
    main()
