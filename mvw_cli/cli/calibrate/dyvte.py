"""`mvw calibrate dyvte`: its options. What it does with them is in `calibrate_dyvte_run.py`."""

from __future__ import annotations

from typing import Any

import click

from mvw_cli.cli.calibrate.options import calibrating
from mvw_cli.cli.options import ARGUMENTS, Remembering

_COUNT = click.IntRange(min=1)


@click.command("dyvte", cls=Remembering, short_help="Train the gates of policy dyvte.")
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
    type=click.FloatRange(1, 1e12),
    default=1.03,
    show_default=True,
    help="… and the loss stays below X times the one with the vision.",
)
@click.option(
    "--lr",
    metavar="RATE",
    type=click.FloatRange(0, 1, min_open=True),
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
@calibrating(limit=500)
@click.pass_context
def dyvte(context: click.Context, /, **options: Any) -> int:
    """Train the gates that choose the layer of exit for each prompt (DyVTE, arXiv 2411.19628).

    Each question is answered with the image, then read again with an exit before every layer. The
    gates learn where an exit changes next to nothing, and are judged on images held out. Without
    --images and --questions, the embedded model's own scenes are asked.

    Whatever has been done lies beside the profile: after Ctrl-C the same command goes on, and with
    another --lr, --epochs, --agreement or --loss-ratio only the training is done again.

    \b
    Examples:
      mvw calibrate dyvte --limit 100
      mvw calibrate dyvte --images photos "What is shown?" --model llava-hf/llava-1.5-7b-hf
      mvw calibrate dyvte --questions train.jsonl --profile qwen2.5-vl-7b --epochs 50 -o fast.yaml
    """
    from mvw_cli.cli.calibrate.dyvte_run import Settings, run
    from mvw_cli.cli.calibrate.task import Task

    own = {name: options.pop(name) for name in Settings.__dataclass_fields__}
    words = tuple(context.meta[ARGUMENTS])
    return run(Task(method="dyvte", words=words, **options), Settings(**own))
