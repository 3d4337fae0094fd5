"""Logs of shards joined to one: each item once, an answer before a failure, and what is missing.

Logs are read from front to back, twice, and the result is written as a whole or not at all: memory
stays flat and nothing is lost. What is missing is known by numbers alone: each log notes how many
items its shard has, and an item's id tells which shard it belongs to.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mvw_cli.batch.items import shard_of
from mvw_cli.batch.store.fingerprint import (
    Sidecar,
    describe_difference,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from mvw_cli.batch.store.jsonl import JsonlFile, cannot_write
from mvw_cli.batch.store.log import LogReader, RecordIndex, cannot_read, repair
from mvw_cli.batch.store.output import (
    check_name,
    check_table,
    export,
    is_table,
    log_of,
    row_of,
)
from mvw_cli.errors import UsageProblem
from mvw_cli.files import check_not_input, check_writable, free_name, is_special, unwritable
from mvw_cli.text import plural

_HELP = "mvw merge --help"
_NAMED = 8
"""Logs that a hint names at most: with more of them it could not be read."""

SCHEMA_VERSION = 1

ShardId = tuple[int, int]
"""`(i, n)` with 0 ≤ i < n."""


class Shard(LogReader):
    """One of the logs, and what `count` found in it."""

    def __init__(self, path: Path, name: str) -> None:
        """Take note of a log, and of what lies beside it."""
        super().__init__(path, name)
        self.sidecar = read_sidecar(path)
        self.listed: Mapping[ShardId, int] = self.sidecar.shards if self.sidecar else {}
        """Items of each shard that it is for; empty where nothing tells it."""
        self.answered = self.failed = 0
        self.records = 0
        """Records in it, repeated ones included."""
        self.runs: set[str] = set()
        """Short hashes of the settings that its records were made with."""

    def count(self, total: RecordIndex) -> None:
        """Read it, and add its records to the index of all logs."""
        own = RecordIndex()
        for record, line in self:
            # Refuses what no table could hold, before anything is written.
            row_of(record, line, self)
            self.runs.add(record["run"])
            self.records += 1
            own.add(record)
            total.add(record)
        self.answered, self.failed = own.answered, own.failed

    def summary(self) -> dict[str, Any]:
        """Return what it holds, as a part of the summary."""
        return {
            "log": self.name,
            "parts": [{"shard": _written(one), "listed": n} for one, n in self.listed.items()],
            "answered": self.answered,
            "failed": self.failed,
        }


def merge(names: Sequence[str], output: str, *, overwrite: bool = False) -> dict[str, Any]:
    """Join logs, with the `.run.json` file that lets `mvw batch` go on with the result.

    The output may be one of them; its records then come first. Of records as good as each other,
    the first counts. A table stands for the log beside it, and gets one. What is there and is none
    of the logs is replaced with `overwrite` only.

    Returns:
        The summary, as `--json` writes it; docs/json.md describes it.

    Raises:
        UsageProblem: a log is missing or holds something else, the logs hold answers of different
            settings, or the output can't be written or is in the way.
        CannotRecord: the result can't be written; what was there is as it was.
    """
    shards = _find(names)
    target = Path(output)
    _check_output(names, shards, target, overwrite)
    name = str(log_of(target))
    log = Path(os.path.realpath(name))
    listed: dict[ShardId, int] = {}
    for shard, count in (entry for one in shards for entry in one.listed.items()):
        listed[shard] = max(count, listed.get(shard, 0))  # a folder may grow between two runs
    found: Counter[ShardId] = Counter()
    index, remarks = RecordIndex(), []
    # The lock keeps other writers off; an empty file that was made for it does not stay.
    with closing(JsonlFile(log, name)) as file:
        try:
            for one in shards:
                one.count(index)
            run = _common_run(shards, output)
            for one in shards:
                if one.path == log:
                    remarks += repair(file, one)
                elif damaged := len(one.damaged) + (one.cut_at is not None):
                    remarks.append(f"{one.name}: {plural(damaged, 'damaged line')} left out")
            ordered = sorted(shards, key=lambda one: one.path != log)
            file.rewrite(_kept_lines(ordered, index, {n for _, n in listed}, found))
        except OSError as error:
            raise cannot_write(output, error, "the logs are as they were") from None
        known = [one.sidecar.fingerprint for one in shards if one.sidecar is not None]
        fitting = [one for one in known if run is None or one.short == run]
        settings = max(fitting, key=lambda one: one.settled, default=None)
        _describe(log, name, None if settings is None else Sidecar(settings, listed))
    if is_table(target):
        export(log_of(target), target)
    return {
        "schema_version": SCHEMA_VERSION,
        "output": output,
        "log": name,
        "run": run,
        "answered": index.answered,
        "failed": index.failed,
        "duplicates": sum(one.records for one in shards) - index.answered - index.failed,
        "shards": [one.summary() for one in shards],
        "gaps": _gaps(listed, found),
        "remarks": remarks,
    }


def _find(names: Iterable[str]) -> list[Shard]:
    """Find logs, each once; a table stands for the log beside it."""
    shards: dict[Path, Shard] = {}
    for name in names:
        log = log_of(Path(name))
        path = Path(os.path.realpath(log))
        if is_special(path):
            raise cannot_read(str(log), "it is no regular file")
        shards.setdefault(path, Shard(path, str(log)))
    return list(shards.values())


def _check_output(
    names: Sequence[str], shards: Sequence[Shard], target: Path, overwrite: bool
) -> None:
    again = ["mvw", "merge", *_short(names)]
    check_name(str(target), again)
    log = log_of(target)
    check_writable(str(log))
    if is_special(log):
        raise unwritable(str(log), "it is no regular file", _HELP)
    if is_table(target):
        check_table(target)
    read = [str(shard.path) for shard in shards]
    is_shard = os.path.realpath(log) in read
    # The log alone may be one of the inputs, and only by its own name: it is replaced as a whole.
    written = [str(path) for path in (log, target) if not (is_shard and path == log)]
    check_not_input(written, read if is_shard else [*read, *names])
    for path in () if overwrite or is_shard else (log, target):
        if path.exists() and path.stat().st_size:
            raise UsageProblem(
                f"{path} exists, and is none of the logs to be joined",
                cause="it would be replaced",
                hint=shlex.join([*again, "-o", free_name(str(target))]),
            )


def _short(names: Sequence[str]) -> Sequence[str]:
    return names if len(names) <= _NAMED else ["SHARDS"]


def _kept_lines(
    shards: Sequence[Shard], index: RecordIndex, divisions: set[int], found: Counter[ShardId]
) -> Iterator[bytes]:
    """Yield the lines of the result; count them in `found`, by shard of each division."""
    for shard in shards:
        for record, line in shard:
            if index.take(record):
                found.update((shard_of(record["id"], n), n) for n in divisions)
                yield line


def _gaps(listed: Mapping[ShardId, int], found: Counter[ShardId]) -> list[dict[str, Any]]:
    """List what is missing, whole shards included; of one without a log nobody knows how much."""
    gaps = []
    for shard in [(i, n) for n in sorted({n for _, n in listed}) for i in range(n)]:
        wanted, count = listed.get(shard), found[shard]
        if wanted is None or count < wanted:
            missing = None if wanted is None else wanted - count
            gap = {"shard": _written(shard), "listed": wanted, "found": count, "missing": missing}
            gaps.append(gap)
    return gaps


def _written(shard: ShardId) -> str:
    return "{}/{}".format(*shard)


def _common_run(shards: Sequence[Shard], output: str) -> str | None:
    """Return the short hash of the settings of all records; refuse several."""
    found = [(run, shard) for shard in shards for run in sorted(shard.runs)]
    if not found:
        return None
    run, first = found[0]
    for other_run, other in found:
        if other_run == run:
            continue
        cause = f"run {run} in {first.name}, run {other_run} in {other.name}"
        if first.sidecar and other.sidecar and other is not first:
            difference = first.sidecar.fingerprint.difference(other.sidecar.fingerprint)
            named = (f"in {first.name}", f"in {other.name}")
            cause = describe_difference(difference, *named) or cause
        fitting = _short([one.name for one in shards if one.runs <= {run}] or [first.name])
        raise UsageProblem(
            "The logs hold answers of different settings",
            cause=cause,
            hint=shlex.join(["mvw", "merge", *fitting, "-o", free_name(output)]),
        )
    return run


def _describe(log: Path, name: str, sidecar: Sidecar | None) -> None:
    """Write the file that goes with the log; no other must stay in its place."""
    try:
        if sidecar is None:
            sidecar_path(log).unlink(missing_ok=True)
        else:
            write_sidecar(log, sidecar)  # a kill leaves the one of before, or this one
    except OSError as error:
        sidecar_path(log).unlink(missing_ok=True)
        where = str(sidecar_path(Path(name)))
        raise cannot_write(where, error, f"the records are safe in {name}") from None
