"""The embedded model `shapes`: a small real VLM, trained by this project on scenes it draws."""

from collections.abc import Callable
from pathlib import Path

import click

from mvw_cli import AdapterInfo, hookimpl


@hookimpl
def mvw_register_adapters(register: Callable[[AdapterInfo], None]) -> None:
    register(
        AdapterInfo(
            name="shapes",
            target="mvw_shapes.model:Shapes",
            summary="the embedded model: coloured shapes on a grid, and easy-VQA",
            checkpoints=("embedded",),
        )
    )


@hookimpl
def mvw_register_commands(cli: click.Group) -> None:
    cli.add_command(samples_command)


@click.command("samples")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=True))
@click.option(
    "--count", type=click.IntRange(min=1), default=10, show_default=True, help="How many questions."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, other samples.")
@click.option(
    "--world",
    type=click.Choice(("scenes", "easy-vqa")),
    default="scenes",
    show_default=True,
    help="Drawn scenes, or the test split of the installed package easy-vqa.",
)
@click.option("--overwrite", is_flag=True, help="Replace samples that are there already.")
def samples_command(directory: Path, count: int, seed: int, world: str, overwrite: bool) -> None:
    """Write samples with questions and true answers into DIRECTORY.

    They are of what the embedded model reads, and none of them was in its training. The path of
    the list of questions goes to stdout.
    """
    from mvw_shapes.samples import write_easy_vqa, write_samples

    write = write_easy_vqa if world == "easy-vqa" else write_samples
    click.echo(write(directory, count, seed, overwrite=overwrite))
