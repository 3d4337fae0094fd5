"""`mvw merge`: the records of shards in one file, and what is missing from them."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from mvw_cli import console
from mvw_cli.cli.options import common_options
from mvw_cli.errors import ExitCode, MvwError
from mvw_cli.text import plural

if TYPE_CHECKING:
    from mvw_cli.batch.store.merge import Gap, Merged, Shard

SCHEMA_VERSION = 1
_TOLD = 5
"""Gaps that the message names."""


@click.command(short_help="Join the records of shards.")
@click.argument(
    "shards", nargs=-1, required=True, metavar="SHARDS...", help="Files that `mvw batch` wrote."
)
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    help="Where the records go: .jsonl, .csv or .parquet; it may be one of the SHARDS.",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE, whatever it holds.")
@click.option("--json", "as_json", is_flag=True, help="Write the summary as JSON to stdout.")
@common_options
def merge(shards: tuple[str, ...], output: str, overwrite: bool, as_json: bool) -> None:
    """Join the records of shards: each item once, an answer before a failure.

    Says what is missing, and ends with code 3 where something is or where items have failed.
    `mvw batch … -o FILE` with the same settings goes on from the result and does the rest. Records
    that were made with different settings are not joined.

    \b
    Examples:
      mvw merge part-*.jsonl -o all.jsonl
      mvw merge part-*.jsonl -o all.parquet --overwrite
      mvw merge results.jsonl more.jsonl -o results.jsonl
    """
    from mvw_cli.batch.store.merge import merge as join

    merged = join(shards, output, overwrite=overwrite)
    if as_json:
        console.write_json(_document(merged, output))
    else:
        _show(merged, output)
    if merged.gaps or merged.failed:
        raise _problem(merged, output)


def _document(merged: Merged, output: str) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "output": output,
        "log": str(merged.log),
        "run": merged.run,
        "answered": merged.answered,
        "failed": merged.failed,
        "duplicates": merged.duplicates,
        "shards": [
            {
                "log": shard.name,
                "parts": [
                    {"shard": _name(part), "listed": listed}
                    for part, listed in shard.listed.items()
                ],
                "answered": shard.answered,
                "failed": shard.failed,
            }
            for shard in merged.shards
        ],
        "gaps": [
            {
                "shard": _name(gap.shard),
                "listed": gap.listed,
                "found": gap.found,
                "missing": None if gap.listed is None else gap.listed - gap.found,
            }
            for gap in merged.gaps
        ],
        "remarks": merged.remarks,
    }


def _name(shard: tuple[int, int]) -> str:
    return "{}/{}".format(*shard)


def _show(merged: Merged, output: str) -> None:
    rows = [_row(shard) for shard in merged.shards]
    console.table(["LOG", "SHARD", "LISTED", "ANSWERED", "FAILED"], rows)
    counts = [f"{merged.answered:,} answered", f"{merged.failed:,} failed"]
    if merged.duplicates:
        counts.append(f"{merged.duplicates:,} left out, which were there twice")
    console.write(f"{output}: {', '.join(counts)}")
    for remark in merged.remarks:
        console.warn(remark)


def _row(shard: Shard) -> list[str]:
    parts = [_name(part) for part in shard.listed]
    name = ", ".join(parts) if len(parts) < 4 else f"{len(parts)} shards"
    listed = f"{sum(shard.listed.values()):,}" if parts else "-"
    return [shard.name, name or "-", listed, f"{shard.answered:,}", f"{shard.failed:,}"]


def _problem(merged: Merged, output: str) -> MvwError:
    """Return what keeps the result from being the whole work."""
    what, cause = f"{plural(merged.failed, 'item')} failed", "their records say why, under `error`"
    if merged.gaps:
        what, cause = "Records are missing", "; ".join(map(_cause, merged.gaps[:_TOLD]))
        if len(merged.gaps) > _TOLD:
            cause += f"; and {len(merged.gaps) - _TOLD:,} more"
    retry = [] if merged.gaps else ["--retry-failed"]
    hint = shlex.join(["mvw", "batch", "FOLDER", "QUESTION", "-o", output, *retry])
    error = MvwError(what, cause=cause, hint=hint)
    error.exit_code = ExitCode.ITEMS_FAILED
    return error


def _cause(gap: Gap) -> str:
    where = f"shard {_name(gap.shard)}: "
    if gap.listed is not None:
        return f"{where}{gap.found:,} of {gap.listed:,} are there"
    found = f", {gap.found:,} records of it are elsewhere" if gap.found else ""
    return f"{where}there is no log of it{found}"
