"""`mvw calibrate dyvte`: its options. What it does with them is in `calibrate_dyvte_run.py`."""

from __future__ import annotations

from typing import Any

import click

from mvw_cli.cli.options import common_options
from mvw_cli.cli.profile_options import model_options
from mvw_cli.cli.remembering import ARGUMENTS, Remembering

_COUNT = click.IntRange(min=1)


@click.command("dyvte", cls=Remembering, short_help="Train the gates of dyvte.")
@click.option("--images", "folder", metavar="DIR", help="Images of a folder.")
@click.option("--questions", metavar="FILE", help="Images, questions and answers, as `mvw batch`.")
@click.option("--question", metavar="TEXT", help="Asked of each image that brings none of its own.")
@click.option("--limit", metavar="N", type=_COUNT, help="Take the first N questions only.")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    default="dyvte",
    show_default=True,
    help="Folder for gates, profile, report, pictures, and what it takes to go on.",
)
@model_options
@click.option(
    "--along",
    type=click.Choice(["own", "reference"]),
    default="own",
    show_default=True,
    help="Answers to follow: the model's own, or those of the questions file.",
)
@click.option(
    "--agreement",
    metavar="PART",
    type=click.FloatRange(0, 1),
    default=0.99,
    show_default=True,
    help="Exit is right where more of the answer's tokens than this stay the likeliest …",
)
@click.option(
    "--loss-ratio",
    metavar="X",
    type=click.FloatRange(min=1),
    default=1.03,
    show_default=True,
    help="… and the loss stays below X times the one with the vision.",
)
@click.option(
    "--lr",
    metavar="RATE",
    type=click.FloatRange(min=0, min_open=True),
    default=6e-5,
    show_default=True,
    help="Learning rate.",
)
@click.option(
    "--epochs",
    metavar="N",
    type=_COUNT,
    default=30,
    show_default=True,
    help="How often each gate sees each question, on average.",
)
@click.option(
    "--batch",
    metavar="N",
    type=_COUNT,
    default=16,
    show_default=True,
    help="Questions in a batch of the training.",
)
@click.option(
    "--held-out",
    metavar="PART",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Part of the images to judge the gates by, never trained on.",
)
@click.option(
    "--gate-dtype",
    type=click.Choice(["model", "float32", "bfloat16", "float16"]),
    default="model",
    show_default=True,
    help="How the file holds the gates.",
)
@click.option(
    "--slots",
    metavar="N",
    type=_COUNT,
    default=8,
    show_default=True,
    help="Questions that the model answers at the same time.",
)
@click.option(
    "--allow-pickle", is_flag=True, help="Read pickled weights where there are no others."
)
@click.option("--json", "as_json", is_flag=True, help="Write the report as JSON to stdout.")
@common_options
@click.pass_context
def dyvte(
    context: click.Context,
    /,
    profile: str | None,
    flags: dict[str, object],
    **options: Any,
) -> int:
    """Train the gates of `--policy dyvte` on your own images.

    Each question is answered with the image, then read again with an exit before every layer. The
    gates learn where that changes next to nothing. Called again after an interruption, the same
    command goes on from there; with another --lr or --epochs, only the training is done again.

    \b
    Examples:
      mvw calibrate dyvte --images photos --question "What is on the table?"
      mvw calibrate dyvte --questions photos.csv --model ORG/NAME -o gates --epochs 50
      mvw infer photo.jpg "What is on the table?" --profile dyvte/profile.yaml
    """
    from mvw_cli.cli.calibrate_dyvte_run import Task, run

    words = tuple(context.meta[ARGUMENTS])
    return run(Task(words=words, profile=profile, flags=flags, **options))
