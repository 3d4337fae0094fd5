"""`mvw show`: what a profile comes to, where its values came from, and what its model costs."""

from __future__ import annotations

import click

from mvw_cli import console
from mvw_cli.cli.options import common_options, complete_profiles, json_option


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
@click.option("--cost", is_flag=True, help="Parameters, bytes, and the bound of the speed-up.")
@click.option(
    "--image",
    metavar="WIDTHxHEIGHT|FILE",
    help="Like --cost, for this image.  [default: 1024x768]",
)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of profiles, for editors.")
@json_option
@common_options
def show(
    name: str | None,
    pairs: tuple[str, ...],
    cost: bool,
    image: str | None,
    schema: bool,
    as_json: bool,
) -> None:
    """Show the values of a profile, each with its origin.

    Without a name: what `mvw infer` would use here and now. Values are written as YAML reads
    them. --cost counts the profile's model instead, from its configuration alone: no weights are
    needed, no GPU, and for the packaged profiles no network.

    \b
    Examples:
      mvw show shapes
      mvw show ./mine.yaml --set withdrawal.m=16
      mvw show qwen2.5-vl-7b --cost --image 1280x720
      mvw show --schema
    """
    import json

    from mvw_cli.profiles.resolution import parse_set, resolve
    from mvw_cli.profiles.schema import json_schema

    if schema:
        console.write_json(json_schema())
        return
    resolved = resolve(name, parse_set(pairs))
    if cost or image is not None:
        from mvw_cli.cli import show_cost

        figures = show_cost.figures(resolved, image)
        if as_json:
            console.write_json({"schema_version": 1, **figures})
        else:
            show_cost.write(figures)
        return
    if as_json:
        console.write_json({"schema_version": 1, **resolved.to_dict()})
        return
    rows = []
    for key, value, origin in resolved.rows():
        # No cell of the table has two spaces on end, nor one at an end.
        text = json.dumps(value, ensure_ascii=False).replace("  ", " \\u0020")
        plain = text == f'"{value}"' and value == value.strip()  # nothing in it needs escaping
        rows.append([key, str(value) if plain else text, f"{origin.kind}: {origin}"])
    console.table(["KEY", "VALUE", "ORIGIN"], rows)
