"""`mvw plugins`: which plugins are installed, what they bring, and what is wrong with them."""

from __future__ import annotations

from dataclasses import asdict

import click

from mvw_cli import console
from mvw_cli.cli.options import common_options, json_option


@click.command()
@json_option
@common_options
@click.pass_context
def plugins(context: click.Context, as_json: bool) -> None:
    """List the installed plugins: what they bring, and whether they work."""
    from mvw_cli.plugins.loading import load_plugins

    root = context.find_root()
    if isinstance(root.command, click.Group):
        root.command.list_commands(root)  # asks the plugins for their commands
    records = [asdict(plugin) for plugin in load_plugins().plugins]
    if as_json:
        console.write_json({"schema_version": 1, "plugins": records})
        return
    rows = []
    for record in records:
        brings = [
            f"{kind}: {', '.join(record[kind])}"
            for kind in ("adapters", "policies", "profiles", "commands")
            if record[kind]
        ]
        status = f"{record['status']}: {record['cause']}" if record["cause"] else record["status"]
        plugin = f"{record['distribution']} {record['version']}"
        rows.append([plugin, record["name"], "; ".join(brings) or "-", status])
    console.table(["DISTRIBUTION", "PLUGIN", "BRINGS", "STATUS"], rows)
