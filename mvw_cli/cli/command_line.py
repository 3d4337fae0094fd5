"""Hints that name the command that was typed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

import click

from mvw_cli.cli.options import option_names
from mvw_cli.images.problems import EXAMPLE_IMAGE, GENERAL_QUESTION

_GENERAL = ("mvw infer IMAGE QUESTION", "mvw batch IMAGES QUESTION")


def as_typed(hint: str, arguments: Sequence[str], root: click.Group) -> str:
    """Put the command that was typed into a hint that names one in general.

    `mvw infer IMAGE QUESTION --dtype bfloat16` becomes whatever was typed after `mvw`, with that
    option in the place of one for the same key; `mvw infer scene.png "What is in the picture?"`
    becomes what was typed with that image in the place of one that is spelled much like it. A hint
    that the typed command does not take stays as it is.
    """
    image = _other_image(hint)
    meant = get_close_matches(image, arguments, n=1) if image else []
    if meant:
        return shlex.join(["mvw", *(image if word == meant[0] else word for word in arguments)])
    before, general, more = next(
        (hint.partition(one) for one in _GENERAL if one in hint), (hint, "", "")
    )
    command = _command(arguments, root)
    if not general or command is None:
        return hint
    taken = {name for parameter in command.params for name in parameter.opts}
    words = list(arguments)
    for name, value in _options(shlex.split(more)):
        key, given = value.partition("=")[::2] if name == "--set" else (_key(name), value)
        same = option_names(key) if key else [name]
        words = _without(words, same, key)
        if key and given != "null" and same and same[-1] in taken:
            added = [same[-1], given]
        elif key and "--set" in taken:
            added = ["--set", f"{key}={given}"]
        elif name in taken:
            added = [name, value] if value else [name]
        else:
            return hint
        end = words.index("--") if "--" in words else len(words)
        words[end:end] = added
    return before + shlex.join(["mvw", *words])


def _other_image(hint: str) -> str:
    """Return the image of a hint that asks the general question about one; empty for others."""
    if not (hint.startswith("mvw infer ") and hint.endswith(f'"{GENERAL_QUESTION}"')):
        return ""
    image = shlex.split(hint)[2]
    return "" if image == EXAMPLE_IMAGE else image


def _command(arguments: Sequence[str], root: click.Group) -> click.Command | None:
    """Find the command that these words call; options before its name take no values."""
    command: click.Command | None = root
    for word in arguments:
        if isinstance(command, click.Group) and not word.startswith("-"):
            command = command.get_command(click.Context(command), word)
    return None if isinstance(command, click.Group) else command


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option with its value, which is empty for a switch."""
    for place, word in enumerate(words):
        if word.startswith("-"):
            following = words[place + 1] if place + 1 < len(words) else "-"
            yield word, "" if following.startswith("-") else following


def _key(name: str) -> str:
    """Return the profile key that an option sets; empty for another option."""
    key = name.removeprefix("--").replace("-", "_")
    keys = (key, f"generation.{key}", f"withdrawal.{key}")
    return next((one for one in keys if name in option_names(one)), "")


def _without(words: Sequence[str], names: Sequence[str], key: str) -> list[str]:
    """Leave out what sets the same: the option in either of its forms, or `--set KEY=`."""
    kept: list[str] = []
    place = 0
    while place < len(words):
        word, following = words[place], words[place + 1] if place + 1 < len(words) else ""
        if word in names or (word == "--set" and key and following.startswith(f"{key}=")):
            place += 2
        elif any(word.startswith(f"{name}=") for name in names):
            place += 1
        else:
            kept.append(word)
            place += 1
    return kept
