"""`mvw profile`: its arguments and options."""

from __future__ import annotations

import os
from typing import Any

import click

from mvw_cli.cli.options import (
    ARGUMENTS,
    FloatRange,
    Listed,
    Remembering,
    arm_options,
    common_options,
    model_options,
)

_OUTPUTS = ("output", "html", "plot", "as_json", "verbose")


_COUNT = click.IntRange(min=1)


@click.command(cls=Remembering, short_help="Measure what withdrawal saves, and what it costs.")
@click.argument("image", required=False, help="Image file.")
@click.argument("question", required=False, help="What to ask about it.")
@arm_options(
    "Other policies to compare, each as in `mvw infer`: vtw:layer=12+mvw:m=16,mvw:m=16 are two. "
    "Repeatable."
)
@model_options
@click.option("--images", "folder", metavar="DIR", help="Images of a folder.")
@click.option(
    "--questions",
    metavar="FILE",
    help="Images, questions and answers, as in `mvw batch`; with --images, images lie there.",
)
@click.option("--limit", metavar="N", type=_COUNT, default=16, show_default=True)
@click.option(
    "--batch",
    "batches",
    metavar="N,…",
    type=Listed(_COUNT, "batches"),
    default="1",
    show_default=True,
    help="Sequences that decode together; several to compare, as 1,8,32.",
)
@click.option(
    "--new-tokens",
    metavar="N",
    type=click.IntRange(min=2),
    default=128,
    show_default=True,
    help="Length of each answer, whatever the model would write.",
)
@click.option("--natural", is_flag=True, help="Let answers end where the model ends them.")
@click.option("--runs", metavar="N", type=_COUNT, default=10, show_default=True, help="Pairs.")
@click.option(
    "--min-time",
    metavar="SECONDS",
    type=FloatRange(min=0),
    default=2.0,
    show_default=True,
    help="Measure each batch size for so long at least.",
)
@click.option("--warmup", metavar="N", type=click.IntRange(min=0), default=1, show_default=True)
@click.option(
    "--answers/--no-answers",
    default=None,
    help="Compare the answers as well.  [default: with images of your own]",
)
@click.option(
    "--attention-mass/--no-attention-mass",
    default=None,
    help="Measure how much attention goes to the image.  [default: with images of your own]",
)
@click.option("--plan", is_flag=True, help="Compute the bounds only; run nothing.")
@click.option("--gpu", metavar="NAME", help="With --plan: bounds for this GPU, as H100.")
@click.option(
    "--image-size",
    metavar="WIDTHxHEIGHT",
    default="1024x768",
    show_default=True,
    help="Of generated images.",
)
@click.option(
    "--allow-pickle", is_flag=True, help="Read pickled weights where there are no others."
)
@click.option(
    "--random-weights",
    is_flag=True,
    help="Measure the model's shape without its weights. There are no answers to compare.",
)
@click.option("--plot", metavar="DIR", help="Write the charts as SVG.")
@click.option("--html", metavar="FILE", help="Write one page that opens offline.")
@click.option("-o", "--output", metavar="FILE", help="Write the report as JSON.")
@click.option("--from", "source", metavar="FILE", help="Show a report again; measure nothing.")
@click.option("--json", "as_json", is_flag=True, help="Write the report as JSON to stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Print every table, not one screen.")
@common_options
@click.pass_context
def profile(
    context: click.Context,
    /,
    profile: str | None,
    flags: dict[str, object],
    **options: Any,
) -> int:
    """Measure what withdrawal saves and what it costs, beside its baseline and its bound.

    Arms run in turn, so that a machine whose speed drifts favours none. Ratios have 95 % intervals;
    where an interval covers 1 no difference is claimed. `mvw calibrate mvw` looks for the smallest
    m that keeps the answers.

    \b
    Examples:
      mvw profile --m 16
      mvw profile photo.jpg "What is on the table?" --model ORG/NAME --m 4,16,64 --html report.html
      mvw profile --profile llava-cot --random-weights --m 16 --batch 1,8,32 -o llava-cot.json
      mvw profile --profile kimi-vl --plan --gpu H100
      mvw profile --from report.json --plot pictures
    """
    from mvw_cli.cli.profile.output import Outputs
    from mvw_cli.cli.profile.run import Task, run

    # With a folder, what stands alone is the question.
    if options["folder"] is not None and options["question"] is None:
        word = options["image"]
        if word is not None and not os.path.lexists(word):
            options["image"], options["question"] = None, word
    wanted = {name: options.pop(name) for name in _OUTPUTS}
    return run(
        Task(
            words=tuple(context.meta[ARGUMENTS]),
            profile=profile,
            flags=flags,
            outputs=Outputs(**wanted),
            **options,
        )
    )
