"""`mvw show`: what a profile comes to, and where each of its values came from."""

from __future__ import annotations

import click

from mvw_cli import console
from mvw_cli.cli.complete import profiles as complete_profiles
from mvw_cli.cli.options import common_options, json_option


@click.command()
@click.argument(
    "name",
    required=False,
    metavar="[NAME|FILE]",
    shell_complete=complete_profiles,
    help="A profile of `mvw list profiles`, or a YAML file.",
)
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="Give a key a value, as in generation.temperature=0.  [repeatable]",
)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of profiles, for editors.")
@json_option
@common_options
def show(name: str | None, pairs: tuple[str, ...], schema: bool, as_json: bool) -> None:
    """Show the values of a profile, each with its origin.

    Without a name: what `mvw infer` would use here and now.

    \b
    Examples:
      mvw show shapes
      mvw show ./mine.yaml --set withdrawal.m=16
      mvw show --schema
    """
    import json

    from mvw_cli import profiles

    if schema:
        console.write_json(profiles.json_schema())
        return
    resolved = profiles.resolve(name, profiles.parse_set(pairs))
    if as_json:
        console.write_json({"schema_version": 1, **resolved.to_dict()})
        return
    rows = []
    for key, value in resolved.values().items():
        origin = resolved.origins[key]
        text = json.dumps(value, ensure_ascii=False)
        plain = isinstance(value, str) and text == f'"{value}"'  # nothing in it needs escaping
        rows.append([key, str(value) if plain else text, f"{origin.kind}: {origin}"])
    console.table(["KEY", "VALUE", "ORIGIN"], rows)
