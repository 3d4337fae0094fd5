"""A plugin that uses every hook, as its author's guide would have it."""

from pathlib import Path

from mvw_cli import AdapterInfo, PolicyInfo, hookimpl


@hookimpl
def mvw_register_adapters(register):
    register(
        AdapterInfo(
            name="good",
            target="mvw_good.model:Good",
            summary="answers everything with its own question",
            checkpoints=("good/first", "good/second"),
        )
    )


@hookimpl
def mvw_register_policies(register):
    register(
        PolicyInfo(
            name="fraction",
            target="mvw_good.policy:Fraction",
            summary="withdraw after a fraction of the budget",
        )
    )


@hookimpl
def mvw_register_profiles(register):
    register(Path(__file__).parent / "profiles")


@hookimpl
def mvw_register_commands(cli):
    import click

    @cli.command()
    def hello():
        """Say hello."""
        click.echo("hello from a plugin")
