"""`mvw infer`: its arguments and options. What it does with them is in `run.py`."""

from __future__ import annotations

from typing import Any

import click

from mvw_cli.cli.options import (
    allow_pickle_option,
    common_options,
    profile_options,
    random_weights_option,
)


@click.command(short_help="Answer a question about an image.")
@click.argument("image", help="Image file, or - for standard input.")
@click.argument("question", help="What to ask about it.")
@profile_options
@click.option(
    "--image",
    "more_images",
    metavar="FILE",
    multiple=True,
    help="A further image of the same question; repeatable.",
)
@click.option(
    "--show-reasoning/--hide-reasoning",
    default=None,
    help="Write the text to stderr as it is generated.  [default: on a terminal]",
)
@allow_pickle_option
@random_weights_option
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document to stdout.")
@click.option("-o", "--output", metavar="FILE", help="Write to FILE what stdout would have got.")
@click.option(
    "--explain",
    metavar="FILE",
    help="Write a web page to FILE: the answer token by token, and what each token looked at.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say which settings run and where time goes.")
@common_options
def infer(image: str, more_images: tuple[str, ...], **options: Any) -> None:
    """Answer a question about an image.

    The answer goes to stdout; the reasoning, the withdrawal of the vision tokens and the figures
    go to stderr. Without a profile or model the embedded one answers, which reads scenes of
    coloured shapes.

    \b
    Examples:
      mvw infer scene.png "How many red circles are there?"
      mvw infer photo.jpg "What is on the table?" --model Qwen/Qwen2.5-VL-7B-Instruct --m 16
      mvw infer scene.png "Is there a star?" --m 16 --explain looked.html
      mvw infer before.png "What has changed?" --image after.png --profile mine.yaml --json
      curl -s https://example.com/cat.jpg | mvw infer - "What is this?" --model ORG/NAME
    """
    from mvw_cli.cli.infer.run import Task, run

    run(Task(images=(image, *more_images), **options))
