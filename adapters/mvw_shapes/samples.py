"""`mvw samples DIR`: scenes that the embedded model has never seen, with questions about them.

Light on purpose: the command is registered on every start of `mvw`, so PIL waits for its use.
"""

from __future__ import annotations

import json
import os
import random
import shlex
from pathlib import Path

import click

from mvw_cli import MvwError, UsageProblem

QUESTIONS = "questions.jsonl"


def write_samples(directory: Path, count: int, seed: int, *, overwrite: bool = False) -> Path:
    """Write `count` held-out scenes as PNG and their questions as JSON lines; return the latter.

    The same count and seed write the same files. Each line has `id`, `image` (relative to the
    directory), `question`, `answer` and `kind`.

    Raises:
        UsageProblem: a file of one of these names is there already, and `overwrite` is off.
        MvwError: the directory cannot be made or written.
    """
    from mvw_shapes.examples import sample_example
    from mvw_shapes.scenes import draw

    names = [f"scene-{number:04d}.png" for number in range(1, count + 1)]
    if not overwrite:
        _refuse_existing(directory, [QUESTIONS, *names])
    rng = random.Random(f"samples/{seed}")
    lines = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in names:
            example = sample_example(rng, held_out=True)
            draw(example.scene, rng).save(directory / name)
            record = {
                "id": name.removesuffix(".png"),
                "image": name,
                "question": example.text,
                "answer": example.answer,
                "kind": example.question.kind,
            }
            lines.append(json.dumps(record) + "\n")
        # Written last and at once: a list that is there is complete.
        part = directory / (QUESTIONS + ".part")
        part.write_text("".join(lines), encoding="utf-8")
        os.replace(part, directory / QUESTIONS)
    except OSError as error:
        raise MvwError(
            f"Cannot write samples to {directory}",
            cause=error.strerror or str(error),
            hint="mvw samples samples",
        ) from None
    return directory / QUESTIONS


def _refuse_existing(directory: Path, names: list[str]) -> None:
    for name in names:
        if os.path.lexists(directory / name):
            raise UsageProblem(
                f"{directory / name} exists already",
                cause="samples would replace it",
                hint=f"mvw samples {shlex.quote(str(directory))} --overwrite",
            )


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=True))
@click.option(
    "--count", type=click.IntRange(min=1), default=10, show_default=True, help="How many scenes."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, other scenes.")
@click.option("--overwrite", is_flag=True, help="Replace samples that are there already.")
def samples(directory: Path, count: int, seed: int, overwrite: bool) -> None:
    """Write sample scenes with questions and true answers into DIRECTORY.

    The scenes are of the world that the embedded model reads, and none of them was in its
    training. The path of the list of questions goes to stdout.
    """
    click.echo(write_samples(directory, count, seed, overwrite=overwrite))
