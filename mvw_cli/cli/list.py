"""`mvw list` and `mvw plugins`: what there is to choose from, without loading any of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mvw_cli import console
from mvw_cli.cli.options import common_options, json_option

if TYPE_CHECKING:
    from mvw_cli.plugins import Entry


@click.group("list")
@common_options
def list_() -> None:
    """List adapters, withdrawal policies or profiles."""


@list_.command()
@json_option
@common_options
def adapters(as_json: bool) -> None:
    """List the model families that can be loaded."""
    from mvw_cli.plugins import load_plugins

    entries = load_plugins().adapters
    records = [{**_record(entry), "checkpoints": list(entry.info.checkpoints)} for entry in entries]
    _show("adapters", records, ("name", "summary", "distribution", "status"), as_json)


@list_.command()
@json_option
@common_options
def policies(as_json: bool) -> None:
    """List the withdrawal policies: what decides when vision tokens go."""
    from mvw_cli.plugins import load_plugins

    entries = load_plugins().policies
    records = [_record(entry) for entry in entries]
    _show("policies", records, ("name", "summary", "distribution", "status"), as_json)


@list_.command()
@json_option
@common_options
def profiles(as_json: bool) -> None:
    """List the named profiles; `mvw show NAME` shows one of them."""
    import os

    from mvw_cli.errors import MvwError
    from mvw_cli.profiles.resolution import chain, shown
    from mvw_cli.profiles.store import known_profiles

    records = []
    for name, files in known_profiles().items():
        values: dict[str, Any] = {}
        cause = None
        try:
            for layer in reversed(chain(files, os.environ)):
                values |= {key: one.value for key, one in layer.values.items()}
        except MvwError as error:
            cause = error.message
        records.append(
            {
                "name": name,
                **{key: values.get(key) for key in ("adapter", "model", "description")},
                "origin": " over ".join(file.distribution or file.kind for file in files),
                "paths": [shown(file.path) for file in files],
                "status": "broken" if cause else "ok",
                "cause": cause,
            }
        )
    columns = ("name", "adapter", "model", "description", "origin", "status")
    _show("profiles", records, columns, as_json)


def _record(entry: Entry[Any]) -> dict[str, Any]:
    return {
        "name": entry.info.name,
        "summary": entry.info.summary,
        "distribution": entry.plugin.distribution,
        "target": entry.info.target,
        "status": entry.plugin.status if entry.problem else "ok",
        "cause": entry.problem,
    }


def _show(what: str, records: list[dict[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    if as_json:
        console.write_json({"schema_version": 1, what: records})
        return
    for record in records:
        if record["cause"]:
            record["status"] += f": {record['cause']}"
    rows = [[str(record[column] or "-") for column in columns] for record in records]
    console.table([column.upper() for column in columns], rows)


@click.command()
@json_option
@common_options
@click.pass_context
def plugins(context: click.Context, as_json: bool) -> None:
    """List the installed plugins: what they bring, and whether they work."""
    from mvw_cli.plugins import load_plugins

    root = context.find_root()
    if isinstance(root.command, click.Group):
        root.command.list_commands(root)  # asks the plugins for their commands
    records = [asdict(plugin) for plugin in load_plugins().plugins]
    if not as_json:
        for record in records:
            brings = [
                f"{kind}: {', '.join(record[kind])}"
                for kind in ("adapters", "policies", "profiles", "commands")
                if record[kind]
            ]
            record["distribution"] += f" {record['version']}"
            record |= {"plugin": record["name"], "brings": "; ".join(brings)}
    _show("plugins", records, ("distribution", "plugin", "brings", "status"), as_json)
