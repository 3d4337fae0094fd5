"""Find the answer that a model has put in \\boxed{…}. Knows no model; needs no torch."""

from typing import TextIO

import click

from mvw_cli import Answer

_OPENING = "\\boxed{"


def read_boxed(text: str) -> Answer:
    """Take the last box as the answer, and what comes before it as the reasoning.

    The box may hold braces. Without a box the whole text is the answer; with one that was cut,
    the answer is empty.
    """
    start = text.rfind(_OPENING)
    if start < 0:
        return Answer(answer=text.strip())
    depth = 1
    for place in range(start + len(_OPENING), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            inside = text[start + len(_OPENING) : place]
            return Answer(answer=inside.strip(), reasoning=text[:start].strip())
    return Answer(answer="", reasoning=text.strip())


@click.command()
@click.argument("file", type=click.File(encoding="utf-8"), default="-")
def unbox(file: TextIO) -> None:
    """Print the boxed answer of a saved text."""
    click.echo(read_boxed(file.read()).answer)
