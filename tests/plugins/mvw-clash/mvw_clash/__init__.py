"""A plugin that takes names which others have: mvw's own among them."""

from pathlib import Path

from mvw_cli import AdapterInfo, PolicyInfo, hookimpl


@hookimpl
def mvw_register_adapters(register):
    for name in ("good", "shapes"):
        register(AdapterInfo(name=name, target="mvw_clash.model:Other", summary="another one"))


@hookimpl
def mvw_register_policies(register):
    for name in ("mvw", "none"):
        register(PolicyInfo(name=name, target="mvw_clash.policy:Missing", summary="another one"))


@hookimpl
def mvw_register_profiles(register):
    register(Path(__file__).parent / "profiles")


@hookimpl
def mvw_register_commands(cli):
    import click

    for name in ("list", "hello"):
        cli.add_command(click.Command(name, callback=lambda: click.echo("from the clash")))
