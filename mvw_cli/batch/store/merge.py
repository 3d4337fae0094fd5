"""Logs of shards joined to one: each item once, an answer before a failure, and what is missing.

Logs are read from front to back, twice, and the result is written as a whole or not at all: memory
stays flat and nothing is lost. What is missing is known by numbers alone: each run notes how many
items its part of the work has, and an item's id tells which shard it belongs to.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mvw_cli.batch.items import shard_of
from mvw_cli.batch.store.fingerprint import (
    Sidecar,
    WorkPart,
    describe_difference,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from mvw_cli.batch.store.jsonl import JsonlFile, cannot_write
from mvw_cli.batch.store.log import LogReader, RecordIndex, cannot_read, repair
from mvw_cli.batch.store.output import LOG, check_name, check_table, export, is_table, log_of
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.files import check_writable, is_special, unwritable
from mvw_cli.text import plural

_HELP = "mvw merge --help"
_NAMED = 8
"""Logs that a hint names at most: with more of them it could not be read."""
_ESCAPE = re.compile(r"\\u(dc[89a-f][0-9a-f])")


class Shard(LogReader):
    """One of the logs; the counts are those of the first reading."""

    def __init__(self, path: Path, name: str) -> None:
        """Take note of a log, and of what lies beside it."""
        super().__init__(path, name)
        self.sidecar = read_sidecar(path)
        self.answered = 0
        self.failed = 0
        """Items that failed and have no answer in this log."""
        self.records = 0
        """Records in it, repeated ones included."""
        self.new = 0
        """Items that the logs before did not have."""
        self.runs: set[str] = set()
        """Short hashes of the settings that its records were made with."""

    @property
    def parts(self) -> tuple[WorkPart, ...]:
        """Which part of the work it is for; empty where nothing tells it."""
        return () if self.sidecar is None else self.sidecar.parts

    @property
    def is_being_written(self) -> bool:
        """Whether another process has it open for writing, as far as locks tell."""
        with self.path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:  # a file system without locks
                return False
        return False


@dataclass(frozen=True, slots=True)
class Gap:
    """Records that should be there."""

    shard: tuple[int, int] | None
    """`(i, n)` with 0 ≤ i < n; None where the work was not divided."""
    listed: int | None
    """Items that it has; None where no log of this shard was given."""
    found: int
    """Records of it."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What came of it."""

    log: Path
    run: str | None
    """Short hash of the settings; None without records."""
    shards: list[Shard]
    answered: int
    failed: int
    duplicates: int
    """Records that were left out for one as good or better."""
    gaps: list[Gap]
    remarks: list[str]
    """What should be told, one line each."""


def merge(names: Sequence[str], output: str, *, overwrite: bool = False) -> Merged:
    """Join logs, with the `.run.json` file that lets `mvw batch` go on with the result.

    The output may be one of them; its records then come first. Of records as good as each other,
    the first counts. A table stands for the log beside it, and gets one. What is there and is none
    of the logs is replaced with `overwrite` only.

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
    ordered = sorted(shards, key=lambda shard: shard.path != log)
    index = RecordIndex()
    # The lock keeps other writers off; an empty file that was made for it does not stay.
    with closing(JsonlFile(log, name)) as file:
        try:
            _read(ordered, index)
            run = _common_run(shards, output)
            remarks = _remarks(shards, log)
            for shard in shards:
                if shard.path == log:
                    remarks = [*repair(file, shard), *remarks]
            coverage = Coverage(_joined_parts(ordered))
            file.rewrite(_kept_lines(ordered, index, coverage, _command(names, output)))
        except OSError as error:
            raise cannot_write(output, error, "the logs are as they were") from None
        _describe(log, name, _sidecar(shards, run, coverage))
    if is_table(target):
        export(log_of(target), target)
    kept = index.answered + index.failed
    return Merged(
        log_of(target),
        run,
        shards,
        index.answered,
        index.failed,
        duplicates=sum(shard.records for shard in shards) - kept,
        gaps=coverage.gaps(),
        remarks=remarks,
    )


class Coverage:
    """Counts records by shard, for each number of shards that the work was divided into."""

    def __init__(self, parts: Iterable[WorkPart]) -> None:
        """Take in what there should be.

        Args:
            parts: of one list of items, divided or not, or of several undivided ones. Of a shard
                that comes twice the longer one counts: a folder may have grown between two runs.
        """
        undivided = []
        self._listed: dict[tuple[int, int], int] = {}
        for part in parts:
            if part.shard is None:
                undivided.append(part)
            else:
                self._listed[part.shard] = max(part.listed, self._listed.get(part.shard, 0))
        divided = sorted(self._listed, key=lambda shard: (shard[1], shard[0]))
        self.parts = (*undivided, *(WorkPart(shard, self._listed[shard]) for shard in divided))
        self._undivided = sum(part.listed for part in undivided)
        self._found = {n: [0] * n for n in sorted({n for _, n in divided})}
        self._total = 0

    def see(self, id: str) -> None:
        """Count the record of an item."""
        self._total += 1
        # The id of the file, which need not be UTF-8: undoes `clean`.
        id = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), id)
        for n, found in self._found.items():
            found[shard_of(id, n)] += 1

    def gaps(self) -> list[Gap]:
        """List what is missing, whole shards included."""
        gaps = []
        if self._total < self._undivided:
            gaps.append(Gap(None, self._undivided, self._total))
        for n, found in self._found.items():
            for i, count in enumerate(found):
                wanted = self._listed.get((i, n))
                if wanted is None or count < wanted:
                    gaps.append(Gap((i, n), wanted, count))
        return gaps


def _find(names: Iterable[str]) -> list[Shard]:
    """Find logs, each once; a table stands for the log beside it."""
    shards: dict[Path, Shard] = {}
    for name in names:
        log = log_of(Path(name))
        try:
            path = Path(os.path.realpath(log))
            if is_special(path):
                raise cannot_read(str(log), "it is no regular file")
            with path.open("rb"):
                shards.setdefault(path, Shard(path, str(log)))
        except OSError as error:
            raise cannot_read(str(log), error.strerror or str(error)) from None
    return list(shards.values())


def _check_output(
    names: Sequence[str], shards: Sequence[Shard], target: Path, overwrite: bool
) -> None:
    better = target.with_suffix(LOG) if target.name else Path(f"all{LOG}")
    check_name(str(target), _command(names, str(better)))
    log = log_of(target)
    check_writable(str(log))
    if is_special(log):
        raise unwritable(str(log), "it is no regular file", _HELP)
    if is_table(target):
        check_table(target)
    if overwrite or Path(os.path.realpath(log)) in [shard.path for shard in shards]:
        return
    for path in (log, target):
        if path.exists() and path.stat().st_size:
            raise UsageProblem(
                f"{path} exists, and is none of the logs to be joined",
                cause="it would be replaced",
                hint=f"{_command(names, str(target))} --overwrite",
            )


def _read(shards: Sequence[Shard], total: RecordIndex) -> None:
    """Read all logs and count."""
    # What no run has described comes last: it adds to what has been.
    for shard in sorted(shards, key=lambda one: not one.parts):
        before = total.answered + total.failed
        own = RecordIndex()
        for record, _ in shard:
            shard.runs.add(record["run"])
            shard.records += 1
            own.add(record)
            total.add(record)
        shard.answered, shard.failed = own.answered, own.failed
        shard.new = total.answered + total.failed - before


def _kept_lines(
    shards: Sequence[Shard], index: RecordIndex, coverage: Coverage, again: str
) -> Iterator[bytes]:
    """Yield the lines of the result, counted by `coverage`."""
    missing = index.answered + index.failed
    for shard in shards:
        for record, line in shard:
            if index.take(record):
                coverage.see(record["id"])
                missing -= 1
                yield line
    if missing:  # a run that tries failed items again replaces its log
        raise MvwError(
            "The logs have changed while they were read",
            cause=f"records that are gone: {missing}",
            hint=again,
        )


def _command(names: Sequence[str], output: str) -> str:
    """Write the command that joins logs, for a hint."""
    logs = names if len(names) <= _NAMED else ["SHARDS"]
    return shlex.join(["mvw", "merge", *logs, "-o", output])


def _common_run(shards: Sequence[Shard], output: str) -> str | None:
    """Return the short hash of the settings of all records; refuse several."""
    filled = [shard for shard in shards if shard.runs]
    if not filled:
        return None
    first = filled[0]
    run = min(first.runs)
    for shard in filled:
        others = sorted(shard.runs - {run})
        if not others:
            continue
        if shard is first:
            what = f"{shard.name} holds answers of different settings"
            cause = f"there are records of run {run} and of run {others[0]}"
        else:
            what = f"{shard.name} holds answers of other settings than {first.name}"
            cause = _difference(first, shard) or (
                f"records of run {others[0]} are in it, of run {run} in {first.name}; "
                "a .run.json file that would tell the difference is missing"
            )
        fitting = [one.name for one in shards if one.runs <= {run}] or [first.name]
        raise UsageProblem(what, cause=cause, hint=_command(fitting, output))
    return run


def _difference(first: Shard, other: Shard) -> str | None:
    if first.sidecar is None or other.sidecar is None:
        return None
    difference = first.sidecar.fingerprint.difference(other.sidecar.fingerprint)
    if not difference:
        return None
    return describe_difference(difference, f"in {first.name}", f"in {other.name}")


def _sidecar(shards: Sequence[Shard], run: str | None, coverage: Coverage) -> Sidecar | None:
    """Return the settings of all records; None where no log has them beside it."""
    known = [shard.sidecar.fingerprint for shard in shards if shard.sidecar is not None]
    fitting = [one for one in known if run is None or one.short == run]
    found = max(fitting, key=lambda one: one.settled, default=None)
    return None if found is None else Sidecar(found, coverage.parts)


def _joined_parts(shards: Sequence[Shard]) -> list[WorkPart]:
    """Collect what the runs had to do.

    Two logs of undivided work that have items in common are taken for runs of the same list, of
    which the longer one counts.
    """
    undivided: list[int] = []
    divided = []
    for shard in sorted(shards, key=lambda one: not one.parts):
        divided += [part for part in shard.parts if part.shard is not None]
        whole = [part.listed for part in shard.parts if part.shard is None]
        if not whole:
            continue
        listed = sum(whole)
        if undivided and shard.new < shard.answered + shard.failed:
            same = min(range(len(undivided)), key=lambda at: abs(undivided[at] - listed))
            undivided[same] = max(undivided[same], listed)
        else:
            undivided.append(listed)
    return [*(WorkPart(None, listed) for listed in undivided), *divided]


def _describe(log: Path, name: str, sidecar: Sidecar | None) -> None:
    """Write the file that goes with the log; no other must stay in its place."""
    if sidecar is not None and read_sidecar(log) == sidecar:
        return
    sidecar_path(log).unlink(missing_ok=True)
    try:
        if sidecar is not None:
            write_sidecar(log, sidecar)
    except OSError as error:
        where = str(sidecar_path(Path(name)))
        raise cannot_write(where, error, f"the records are safe in {name}") from None


def _remarks(shards: Sequence[Shard], log: Path) -> list[str]:
    told = []
    for shard in shards:
        if shard.path == log:
            continue
        is_cut = shard.cut_at is not None
        if shard.is_being_written:
            told.append(f"{shard.name} is still being written; what comes now is left out")
            is_cut = False
        if count := shard.junk + is_cut:
            told.append(f"{shard.name}: {plural(count, 'damaged line')} left out")
    if not any(shard.parts for shard in shards):
        told.append("nothing tells how many items there should be: no log has its .run.json file")
    return told
