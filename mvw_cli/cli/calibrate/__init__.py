"""`mvw calibrate`: the group. Its commands are lists of options; what they do is in `run.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from mvw_cli.cli.options import (
    ARGUMENTS,
    FloatRange,
    Listed,
    Remembering,
    common_options,
    model_options,
)

_COUNT = click.IntRange(min=1)
_PART = FloatRange(0, 1)
_PART_ABOVE_0 = FloatRange(0, 1, min_open=True)
_ABOVE_0 = FloatRange(min=0, min_open=True)
_MOMENTS = "1,2,4,8,16,32,64,128"
_DTYPES = ["model", "float32", "bfloat16", "float16"]


@click.group(short_help="Find a policy's settings on your own images.")
@common_options
def calibrate() -> None:
    """Find a policy's settings on your own images, and write the profile that uses them."""


def _option(
    names: str, metavar: str | None, kind: Any, default: object, help: str
) -> Callable[..., Any]:
    """Make an option of one search; its help tells the default, where there is one.

    Args:
        names: with spaces between them, as click takes them: `-m --m`.
    """
    return click.option(
        *names.split(),
        metavar=metavar,
        type=kind,
        default=default,
        show_default=default is not None,
        help=help,
    )


def _command(
    name: str, short_help: str, search: str, *options: Callable[..., Any], limit: int = 20
) -> Callable[[Callable[[], None]], click.Command]:
    """Make a command of a docstring.

    To the options of the method, which are the fields of its search, those are added that say which
    model is asked what, and where the outcome goes.

    Args:
        search: module below `mvw_cli.calibrate` and class, imported once everything is checked.
        limit: items that are taken where the user gives no number.
    """
    shared: list[Callable[..., Any]] = [
        click.argument("question", required=False, help="Asked of every image."),
        click.option("--images", "folder", metavar="DIR", help="Folder of images."),
        click.option(
            "--questions",
            metavar="FILE",
            help="Images, questions and answers, as `mvw batch`; paths are below --images.",
        ),
        click.option("--limit", metavar="N", type=_COUNT, default=limit, show_default=True),
        model_options,
        click.option(
            "-o",
            "--output",
            metavar="FILE",
            default=f"{name}.yaml",
            show_default=True,
            help="The profile; report, charts and samples are written next to it.",
        ),
        click.option("--json", "as_json", is_flag=True, help="The report as JSON to stdout."),
        click.option(
            "--allow-pickle",
            is_flag=True,
            help="Read pickled weights where there are no others.",
        ),
        common_options,
    ]

    def decorate(described: Callable[[], None]) -> click.Command:
        @functools.wraps(described)
        def call(**given: Any) -> int:
            from mvw_cli.cli.calibrate.run import run

            return run(name, click.get_current_context().meta[ARGUMENTS], search, **given)

        wrapped: Callable[..., Any] = call
        for decorator in reversed([*options, *shared]):
            wrapped = decorator(wrapped)
        return calibrate.command(name, cls=Remembering, short_help=short_help)(wrapped)

    return decorate


@_command(
    "vtw",
    "Find the layer for policy vtw.",
    "vtw:VtwSearch",
    _option("--eta", "NATS", _ABOVE_0, 0.003, "Largest mean KL divergence that is accepted."),
    _option(
        "--min-layer", "K", _COUNT, 1, "First layer that may be chosen; the reference starts at 5."
    ),
    _option(
        "--tokens",
        "N",
        _COUNT,
        1,
        "Compare the first N tokens of the answer; the published search compares 1.",
    ),
)
def vtw() -> None:
    """Find the decoder layer before which vision may leave the prompt (VTW, arXiv 2405.05803).

    For each layer K, the distribution of the first answer token with the vision gone before layer K
    is compared with the full model's: KL(p_K || p), mean over the samples. K is the first layer at
    which it is at most eta. All layers are tried in one pass. Without --images and --questions, the
    embedded model's own scenes are asked.

    A reasoning model's first token is often a fixed tag, which needs no image: compare more with
    --tokens. What is found is kept for each sample, so that the same command goes on after Ctrl-C.

    \b
    Examples:
      mvw calibrate vtw --tokens 64
      mvw calibrate vtw --images photos "What is shown?" --model llava-hf/llava-1.5-7b-hf
      mvw calibrate vtw --questions dev.jsonl --profile qwen2.5-vl-7b --eta 0.001 -o fast.yaml
    """


@_command(
    "mvw",
    "Find m, or a tag, for policy mvw.",
    "mvw:MvwSearch",
    _option("-m --m", "N,…", Listed(_COUNT, "moments"), _MOMENTS, "Moments to try."),
    _option(
        "--tags", "TAG,…", Listed(click.STRING, "tags"), None, "Tags to try as well, as </CAPTION>."
    ),
    _option("--tolerance", "PART", _PART, 0.02, "The part of the answers that may get worse."),
)
def mvw() -> None:
    """Find the smallest m, or the earliest tag, whose answers stay within the tolerance.

    Every item is answered without withdrawal, without its image, and under each m and tag. An m
    counts if it and every later one loses no more than the tolerance, of the right answers or,
    without references, of the answers that come out the same. Agreement and KL along the answers
    without withdrawal are told with it.

    What is found is kept for each item, so that the same command goes on after Ctrl-C.

    \b
    Examples:
      mvw calibrate mvw --tags "</CAPTION>"
      mvw calibrate mvw --questions dev.jsonl --limit 200 --profile llava-cot --m 16,32,64,128
    """


@_command(
    "mass",
    "Find the threshold for policy mass.",
    "mass:MassSearch",
    _option(
        "--thresholds",
        "X,…",
        Listed(_PART_ABOVE_0, "thresholds"),
        None,
        "Thresholds to try.  [default: 12 quantiles of the masses seen]",
    ),
    _option(
        "--tolerance",
        "PART",
        _PART,
        0.02,
        "The part of next tokens, and of answers, that may come out otherwise.",
    ),
    _option(
        "--patience",
        "N",
        _COUNT,
        4,
        "Tokens in a row for which the average must be under the threshold.",
    ),
    _option(
        "--smoothing", "PART", _PART_ABOVE_0, 0.3, "Weight of the newest token in the average."
    ),
)
def mass() -> None:
    """Find the highest threshold of the vision attention mass that keeps the answers.

    Each item is answered once without withdrawal, and the mass after each token is kept: where any
    threshold would withdraw follows from it. The next tokens along that answer are then compared
    with those after such a withdrawal. Thresholds that keep the tolerance there are tried for real,
    the highest first, until one keeps the answers, too.

    What is found is kept for each item, so that the same command goes on after Ctrl-C.

    \b
    Examples:
      mvw calibrate mass
      mvw calibrate mass --questions dev.jsonl --profile qwen3-vl-8b-thinking --patience 8
    """


@_command(
    "dyvte",
    "Train the gates of policy dyvte.",
    "dyvte.search:DyvteSearch",
    _option(
        "--along",
        None,
        click.Choice(["own", "reference"]),
        "own",
        "Answers to follow: the model's own, or those of the questions file.",
    ),
    _option(
        "--agreement",
        "PART",
        _PART,
        0.99,
        "Exit is right where more of the answer's tokens than this stay the likeliest …",
    ),
    _option(
        "--loss-ratio",
        "X",
        FloatRange(1, 1e12),
        1.03,
        "… and the loss stays below X times the one with the vision.",
    ),
    _option("--lr", "RATE", _PART_ABOVE_0, 6e-5, "Learning rate."),
    _option("--epochs", "N", _COUNT, 30, "How often each gate sees each question, on average."),
    _option("--batch", "N", _COUNT, 16, "Questions in a batch of the training."),
    _option(
        "--held-out",
        "PART",
        FloatRange(0, 1, min_open=True, max_open=True),
        0.2,
        "Part of the images to judge the gates by, never trained on.",
    ),
    _option("--gate-dtype", None, click.Choice(_DTYPES), "model", "How the file holds the gates."),
    _option("--slots", "N", _COUNT, 8, "Questions that the model answers at the same time."),
    limit=500,
)
def dyvte() -> None:
    """Train the gates that choose the layer of exit for each prompt (DyVTE, arXiv 2411.19628).

    Each question is answered with the image, then read again with an exit before every layer. The
    gates learn where an exit changes next to nothing, and are judged on images held out. Without
    --images and --questions, the embedded model's own scenes are asked.

    Labels are kept next to the profile: after Ctrl-C the same command goes on, and with another
    --lr, --epochs, --agreement or --loss-ratio only the training is done again.

    \b
    Examples:
      mvw calibrate dyvte --limit 100
      mvw calibrate dyvte --images photos "What is shown?" --model llava-hf/llava-1.5-7b-hf
      mvw calibrate dyvte --questions train.jsonl --profile qwen2.5-vl-7b --epochs 50 -o fast.yaml
    """
