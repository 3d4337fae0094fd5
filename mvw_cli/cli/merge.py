"""`mvw merge`: the records of shards in one file, and what is missing from them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import click

from mvw_cli import console
from mvw_cli.cli.options import common_options
from mvw_cli.errors import ExitCode, MvwError
from mvw_cli.text import plural

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

    summary = join(shards, output, overwrite=overwrite)
    if as_json:
        console.write_json(summary)
    else:
        _show(summary)
    if summary["gaps"] or summary["failed"]:
        raise _problem(summary)


def _show(summary: Mapping[str, Any]) -> None:
    rows = [_row(shard) for shard in summary["shards"]]
    console.table(["LOG", "SHARD", "LISTED", "ANSWERED", "FAILED"], rows)
    counts = [f"{summary['answered']:,} answered", f"{summary['failed']:,} failed"]
    if summary["duplicates"]:
        counts.append(f"{summary['duplicates']:,} left out, which were there twice")
    console.write(f"{summary['output']}: {', '.join(counts)}")
    for remark in summary["remarks"]:
        console.warn(remark)


def _row(shard: Mapping[str, Any]) -> list[str]:
    parts = [part["shard"] for part in shard["parts"]]
    name = ", ".join(parts) if len(parts) < 4 else f"{len(parts)} shards"
    listed = f"{sum(part['listed'] for part in shard['parts']):,}" if parts else "-"
    return [shard["log"], name or "-", listed, f"{shard['answered']:,}", f"{shard['failed']:,}"]


def _problem(summary: Mapping[str, Any]) -> MvwError:
    """Return what keeps the result from being the whole work."""
    gaps = summary["gaps"]
    what = f"{plural(summary['failed'], 'item')} failed"
    cause = "their records say why, under `error`"
    if gaps:
        what, cause = "Records are missing", "; ".join(map(_cause, gaps[:_TOLD]))
        if len(gaps) > _TOLD:
            cause += f"; and {len(gaps) - _TOLD:,} more"
    retry = [] if gaps else ["--retry-failed"]
    hint = shlex.join(["mvw", "batch", "FOLDER", "QUESTION", "-o", summary["output"], *retry])
    error = MvwError(what, cause=cause, hint=hint)
    error.exit_code = ExitCode.ITEMS_FAILED
    return error


def _cause(gap: Mapping[str, Any]) -> str:
    where = f"shard {gap['shard']}: "
    if gap["listed"] is not None:
        return f"{where}{gap['found']:,} of {gap['listed']:,} are there"
    found = f", {gap['found']:,} records of it are elsewhere" if gap["found"] else ""
    return f"{where}there is no log of it{found}"
