"""Hints that name the command that was typed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

import click

from mvw_cli.cli.options import KEYS

_GENERAL = ("mvw infer IMAGE QUESTION", "mvw batch IMAGES QUESTION", "mvw eval DATA")


def as_typed(hint: str, arguments: Sequence[str], root: click.Group) -> str:
    """Put the command that was typed into a hint that names one in general.

    `mvw infer IMAGE QUESTION --dtype bfloat16` becomes whatever was typed after `mvw`, with that
    option in the place of one for the same key. Where the typed command does not take it, the
    general one stays, about the same profile.
    """
    general = next((one for one in _GENERAL if one in hint), None)
    command = _command(arguments, root)
    if general is None or command is None:
        return hint
    before, _, more = hint.partition(general)
    taken = {name: parameter.opts for parameter in command.params for name in parameter.opts}
    words = list(arguments)
    for name, value in _options(shlex.split(more)):
        key, given = KEYS.get(name, ""), value
        if name == "--set":
            key, _, given = value.partition("=")
        same = (
            [one for one, sets in KEYS.items() if sets == key] if key else taken.get(name, [name])
        )
        words = _without(words, same, key)
        if key and given != "null" and same and same[-1] in taken:
            added = [same[-1], given]
        elif key and "--set" in taken:
            added = ["--set", f"{key}={given}"]
        elif name in taken:
            added = [name, value] if value else [name]
        else:
            kept = [
                word
                for before_it, word in zip(["", *words], words, strict=False)
                if {word.partition("=")[0], before_it} & {"--profile", "--set"}
            ]
            return before + " ".join(filter(None, (general, shlex.join(kept), more.strip())))
        end = words.index("--") if "--" in words else len(words)
        words[end:end] = added
    return before + shlex.join(["mvw", *words])


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


def _without(words: Sequence[str], names: Sequence[str], key: str) -> list[str]:
    """Leave out what sets the same: the option in either of its forms, or `--set KEY=`."""
    kept = list(words)
    for place in reversed(range(len(words))):
        word, following = words[place], "".join(words[place + 1 : place + 2])
        if word in names or (word == "--set" and key and following.startswith(f"{key}=")):
            del kept[place : place + 2]
        elif any(word.startswith(f"{name}=") for name in names):
            del kept[place]
    return kept
