"""The options that every search of `mvw calibrate` has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from mvw_cli.cli.model_options import model_options
from mvw_cli.cli.options import common_options

_COUNT = click.IntRange(min=1)


def calibrating(limit: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add what says which model is asked what, and where the outcome goes.

    Args:
        limit: items that are taken where the user gives no number.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        name = command.__name__
        before: list[Callable[..., Any]] = [
            click.argument("question", required=False, help="Asked of every image."),
            click.option("--images", "folder", metavar="DIR", help="Folder of images."),
            click.option(
                "--questions",
                metavar="FILE",
                help="Images, questions and answers, as `mvw batch`; paths are below --images.",
            ),
            click.option("--limit", metavar="N", type=_COUNT, default=limit, show_default=True),
        ]
        after: list[Callable[..., Any]] = [
            click.option(
                "-o",
                "--output",
                metavar="FILE",
                default=f"{name}.yaml",
                show_default=True,
                help="The profile; report, pictures and samples are written beside it.",
            ),
            click.option("--json", "as_json", is_flag=True, help="The report as JSON to stdout."),
            click.option(
                "--allow-pickle",
                is_flag=True,
                help="Read pickled weights where there are no others.",
            ),
            common_options,
        ]

        @functools.wraps(command)
        def call(*args: Any, **given: Any) -> Any:
            return command(*args, **given)

        wrapped: Callable[..., Any] = call
        for option in reversed([*before, model_options, *after]):
            wrapped = option(wrapped)
        return wrapped

    return decorate
