"""The words of a command line: each option takes a value, or the command says why not."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from fuzzing import run

from mvw_cli.cli import cli

TYPED = (
    *("nan", "inf", "-inf", "1e999", "-1", "0", "1", "0.5", "9" * 400, "9" * 5000, "-" + "9" * 30),
    *(
        "",
        " ",
        "x",
        "é",
        "\udcff",
        "x" * 5000,
        "1,,2",
        ",",
        "0x10",
        "\uff11\uff12",
        "\u00b2",
        "1_0",
    ),
    *(
        "1/2",
        "2/1",
        "0/0",
        "9/" + "9" * 5000,
        "1G",
        "9e9G",
        "1.5.5M",
        "a=b",
        "a:b=c",
        "[",
        "*",
        "-",
    ),
)


def parameters(command: click.Command, path: str) -> Iterator[tuple[str, click.Parameter]]:
    """List the options and arguments of a command, and of all below it."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from parameters(below, f"{path} {name}")
        return
    for parameter in command.params:
        if not getattr(parameter, "is_flag", False):
            yield path, parameter


def test_every_option_takes_a_value_or_refuses_it() -> None:
    tried = 0
    for path, parameter in parameters(cli, "mvw"):
        context = click.Context(click.Command(path))
        for value in TYPED:
            tried += 1
            try:
                parameter.type.convert(value, parameter, context)
            except click.UsageError as error:
                assert error.format_message()
            except Exception as error:
                pytest.fail(f"{path} {parameter.opts} {value[:20]!r}: {error!r}")
    assert tried > 1000


@pytest.mark.parametrize(
    "words",
    [
        "batch s ? --kv-memory 9e9T",
        f"batch s ? --kv-memory {'9' * 400}",
        f"batch s ? --shard 0/{'9' * 5000}",
        "batch s ? --read-timeout nan",
        "batch s ? --read-timeout inf",
        "batch s ? --readers 1000000",
        "infer a.png ? --temperature nan",
        "infer a.png ? --top-p nan",
        "profile --min-time inf",
        "calibrate mvw ? --tolerance nan",
    ],
)
def test_numbers_that_are_none(words: str) -> None:
    ran = run(*words.split())
    assert ran.code == 2 and ran.err.startswith("Usage: ")
