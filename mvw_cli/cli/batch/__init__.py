"""`mvw batch`: its arguments and options. What it does with them is in `run.py`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click

from mvw_cli.cli.options import (
    ARGUMENTS,
    FloatRange,
    Remembering,
    Size,
    allow_pickle_option,
    common_options,
    profile_options,
    random_weights_option,
)


class _Shard(click.ParamType[Any, Any]):
    """`i/N`, counted from 0."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)
        if found is None or not int(found[1]) < int(found[2]):
            self.fail(f"{value!r} is no shard; the shards of 4 are 0/4, 1/4, 2/4, 3/4.", param, ctx)
        return int(found[1]), int(found[2])


def serving_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what says who serves items, how many at a time, and how failures are met."""
    for option in reversed(_SERVING):
        command = option(command)
    return command


def column_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the names of a table's columns."""
    for option in reversed(_COLUMNS):
        command = option(command)
    return command


_SERVING = (
    click.option("--retry-failed", is_flag=True, help="Try those again that have failed before."),
    click.option(
        "--keep-going", is_flag=True, help="Go on where the first 20 items have all failed alike."
    ),
    click.option(
        "--slots",
        metavar="N",
        type=click.IntRange(min=1),
        help="Images answered at the same time.  [default: by memory]",
    ),
    click.option(
        "--kv-memory",
        metavar="SIZE",
        type=Size(),
        help="Memory for the KV cache, as 800MiB or 20GiB.",
    ),
    click.option(
        "--workers",
        metavar="N",
        type=click.IntRange(min=1),
        help="Processes; each has its own GPU.",
    ),
    click.option(
        "--executor",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Who does the work: this machine, or Ray.",
    ),
    click.option("--ray-address", metavar="ADDRESS", help="Ray cluster; without it, a local one."),
    click.option("--shard", metavar="I/N", type=_Shard(), help="Do part I of N, counted from 0."),
    click.option(
        "--readers",
        metavar="N",
        type=click.IntRange(1, 1024),
        default=2,
        show_default=True,
        help="Threads that read images ahead.",
    ),
    click.option(
        "--read-timeout",
        metavar="SECONDS",
        type=FloatRange(0, 86400, min_open=True),
        default=60.0,
        show_default=True,
        help="Give an image up that can't be read in this time.",
    ),
    allow_pickle_option,
)
_COLUMNS = (
    click.option(
        "--image-column", metavar="NAME", help="Column of a table.  [default: by its name]"
    ),
    click.option("--question-column", metavar="NAME", help="The same for the question."),
    click.option("--id-column", metavar="NAME", help="The same for the id."),
    click.option("--answer-column", metavar="NAME", help="The same for the right answer."),
)


@click.command(cls=Remembering, short_help="Answer a question about many images.")
@click.argument(
    "images",
    nargs=-1,
    metavar="IMAGES... [QUESTION]",
    help="Folders, image files, Parquet or dataset files; - reads paths from standard input.",
)
@profile_options
@click.option(
    "--questions",
    metavar="FILE",
    help="JSONL or CSV file with image, question and, where there are any, id and answer.",
)
@click.option("-r", "--recursive", is_flag=True, help="Take the folders below as well.")
@click.option(
    "--include", metavar="GLOB", multiple=True, help="Take only these images; repeatable."
)
@click.option("--exclude", metavar="GLOB", multiple=True, help="Leave these out; repeatable.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Take the first N only.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Where the records go: .jsonl, .csv or .parquet.  [default: NAME.results.jsonl]",
)
@click.option("--overwrite", is_flag=True, help="Start afresh, whatever FILE holds.")
@click.option("--dry-run", is_flag=True, help="Say what would run, and what it would take.")
@serving_options
@column_options
@random_weights_option
@click.option("--json", "as_json", is_flag=True, help="Write the summary as JSON to stdout.")
@common_options
@click.pass_context
def batch(
    context: click.Context, /, images: tuple[str, ...], flags: dict[str, object], **options: Any
) -> int:
    """Answer a question about many images, and lose nothing.

    One record for each image goes to a file as soon as it is answered. The same command goes on
    where it was stopped, whatever stopped it: images are known by their content, so files may be
    renamed and folders may grow. A failing image is a record of its own and stops no other.

    \b
    Examples:
      mvw batch ./images "How many red circles are there?"
      mvw batch ./photos --questions questions.csv --profile mine.yaml -o answers.parquet
      find . -name "*.png" | mvw batch - "What is this?" --model ORG/NAME --kv-memory 20GiB
      mvw batch ./images "What is this?" --shard 3/8 -o part3.jsonl
    """
    from mvw_cli.batch.source.paths import Source
    from mvw_cli.cli.batch.run import Task, run

    paths, question = split(images)
    asked = {
        field.name: options.pop(field.name) for field in fields(Source) if field.name in options
    }
    source = Source(paths, question=question, **asked)
    return run(Task(tuple(context.meta[ARGUMENTS]), source, flags=flags, **options))


def split(arguments: tuple[str, ...]) -> tuple[tuple[str, ...], str | None]:
    """Tell the question, which comes last, from the paths before it."""
    if len(arguments) < 2 or os.path.lexists(arguments[-1]) or _looks_like_a_path(arguments[-1]):
        return arguments, None
    return arguments[:-1], arguments[-1]


def _looks_like_a_path(word: str) -> bool:
    """Whether a word that names nothing is rather a mistyped path than a question."""
    if any(mark in word for mark in (" ", "?")):
        return False
    return word == "-" or "://" in word or os.sep in word or bool(re.search(r"\.\w{2,7}$", word))
