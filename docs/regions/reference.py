"""What the code says of itself: commands, exit codes, profile keys, variables, policies."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import click
from click.testing import CliRunner

from mvw_cli.cli import cli
from mvw_cli.errors import ExitCode, MvwError
from mvw_cli.plugins import load_plugins, load_policy
from mvw_cli.profiles.resolution import VARIABLES, resolve
from mvw_cli.profiles.schema import SECTIONS, Profile, fields
from mvw_cli.profiles.store import known_profiles
from mvw_cli.profiles.withdrawal import policy_model

_WIDTH = 90

# What the classes of errors.py can't say, because no error is behind the code.
_CODES = {
    ExitCode.OK: "The command did what it was asked.",
    ExitCode.FAILURE: "Any other failure while running; the message says which.",
    ExitCode.ITEMS_FAILED: "Items of a batch failed or of a calibration were left out, or are "
    "missing from what was merged.",
    ExitCode.CHECKS_FAILED: "`mvw doctor` found a problem; its lines say which.",
    ExitCode.INTERRUPTED: "Interrupted with Ctrl-C.",
}

_VARIABLES = {
    "MVW_API_KEY": "The token that requests to `mvw serve` have to bring, as `--api-key` gives it.",
    "MVW_DEBUG": "`1` shows the traceback of an error, as `--debug` does.",
    "MVW_HOME": "Folder of your own settings, instead of the platform's; profiles lie in its "
    "`profiles/`, and what `mvw profile` has measured of the device in its "
    "`cache/`.",
    "MVW_LOAD_PLUGINS": "Loads only these plugins, by entry-point or distribution name, separated "
    "by commas, besides mvw's own. Empty: mvw's own only.",
    "MVW_MODEL": "The key `model`, where no `--model` gives it.",
    "MVW_OFFLINE": "`1` asks no network, as `--offline` does.",
    "MVW_PROFILE": "The profile to run where no `--profile` names one.",
}

_NO_MODEL = {"shapes": "the embedded model", "hf": "a template: name a model"}
_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def commands() -> str:
    """Write the help of every command, as the command itself prints it."""
    parts = []
    for path, _ in walk(cli, ("mvw",)):
        run = CliRunner().invoke(cli, [*path[1:], "--help"], prog_name="mvw", terminal_width=_WIDTH)
        if run.exit_code:
            raise click.ClickException(f"{' '.join(path)} --help fails: {run.output}")
        parts.append(f"## `{' '.join(path)}`\n\n```text\n{run.stdout.strip()}\n```")
    return "\n\n".join(parts)


def walk(
    command: click.Command, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield a command and all below it, each with its full name."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from walk(below, (*path, name))


def exit_codes() -> str:
    """Write the table of exit codes; most meanings are the docstrings of the errors."""
    meanings = dict(_CODES)
    for kind in MvwError.__subclasses__():
        if kind.__module__ == MvwError.__module__:
            meanings[kind.exit_code] = (kind.__doc__ or "").strip()
    return table(
        ("Code", "Name", "Meaning"),
        [(f"`{code.value}`", f"`{code.name}`", meanings[code]) for code in ExitCode],
    )


def profile_keys() -> str:
    """Write the table of profile keys, but for the fields of the policies."""
    options = _options_by_key()
    rows = []
    for key, schema in _key_schemas():
        option = ", ".join(f"`{name}`" for name in options.get(key, ())) or "-"
        given = schema.get("default")
        # Two defaults depend on other keys; their descriptions say how.
        plain = given is not None and "Without it:" not in schema["description"]
        default = f"`{_plain(given)}`" if plain else "-"
        kind = _kind(schema)
        rows.append((f"`{key}`", kind, default, option, schema["description"]))
    return table(("Key", "Value", "Default", "Option", "Meaning"), rows)


def policies() -> str:
    """Write the table of the fields of every policy that comes with mvw."""
    options = _options_by_key()
    rows = []
    for entry in load_plugins().policies:
        name = f"`{entry.info.name}`"
        own = policy_model(load_policy(entry.info.name)).model_json_schema()["properties"]
        if not own:
            rows.append((name, "-", "-", "-", entry.info.summary))
        for field, schema in own.items():
            key = f"withdrawal.{field}"
            option = ", ".join(f"`{one}`" for one in options.get(key, ())) or "-"
            row = (name, f"`{key}`", _kind(schema), option, schema.get("description", ""))
            rows.append(row)
    return table(("Policy", "Key", "Value", "Option", "Meaning"), rows)


def profiles() -> str:
    """Write the table of the packaged profiles, with what each says of the generation."""
    rows = []
    for name in known_profiles({"MVW_HOME": os.devnull}):
        profile = resolve(name, {}, {"MVW_HOME": os.devnull}).profile
        told = profile.generation.model_dump(exclude_none=True)
        chosen = [f"{key} {told[key]}" for key in _SAMPLING if key in told]
        if told.get("temperature") == 0:
            chosen[0] = "greedy"
        if told.get("repetition_penalty") == 1:
            chosen.pop()
        model = _NO_MODEL.get(name, profile.model)
        length = f"{told['max_new_tokens']:,}"
        real = {"shapes": "yes", "hf": "-"}.get(name, "no")
        rows.append((f"`{name}`", model, ", ".join(chosen) or "as the model says", length, real))
    head = ("Profile", "Model", "Sampling", "Tokens at most", "Run here with its real weights")
    return table(head, rows)


def control_variables() -> str:
    """Write the table of the environment variables."""
    return table(("Variable", "Meaning"), [(f"`{name}`", _VARIABLES[name]) for name in VARIABLES])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _options_by_key() -> dict[str, list[str]]:
    """Find the options of `mvw infer` that set a key: they carry its name."""
    infer = cli.get_command(click.Context(cli), "infer")
    found: dict[str, list[str]] = {}
    for parameter in infer.params if infer else ():
        if isinstance(parameter, click.Option) and parameter.name:
            found[parameter.name] = [*parameter.opts, *parameter.secondary_opts]
    keys = [*fields(), "withdrawal.m", "withdrawal.until"]
    return {key: found.get(key.replace(".", "_"), []) for key in keys}


def _key_schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    schema = Profile.model_json_schema()
    for name, own in schema["properties"].items():
        if name not in SECTIONS:
            yield name, own
            continue
        for field, inner in schema["$defs"][SECTIONS[name].__name__]["properties"].items():
            yield f"{name}.{field}", inner


def _kind(schema: dict[str, Any]) -> str:
    """Say in words what a JSON Schema lets through."""
    if "anyOf" in schema:
        kinds = list(dict.fromkeys(_kind(one) for one in schema["anyOf"]))
        return " or ".join(kinds)
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    words = {"string": "text", "integer": "whole number", "array": "list", "boolean": "true, false"}
    kind = words.get(schema.get("type", ""), schema.get("type", "anything"))
    bounds = [
        f"{said} {schema[bound]:g}"
        for bound, said in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
        )
        if bound in schema
    ]
    return f"{kind}, {' and '.join(bounds)}" if bounds else kind


def _plain(value: object) -> str:
    return str(value) if not isinstance(value, list) else "[" + ", ".join(map(str, value)) + "]"
