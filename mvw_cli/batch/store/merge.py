"""Logs of shards joined to one: each item once, an answer before a failure.

Logs are read from front to back, twice, and the result is written as a whole or not at all: memory
stays flat and nothing is lost. What is added to one of the logs is appended, so that a disk that
was full need not hold it twice. Which items there should be is not known here; `gaps.py` knows how
many.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mvw_cli.batch.store.export import check_table, export, is_table, log_of
from mvw_cli.batch.store.gaps import Coverage, Gap
from mvw_cli.batch.store.index import Index
from mvw_cli.batch.store.output import LOG, TABLES
from mvw_cli.batch.store.repair import mend, open_locked
from mvw_cli.batch.store.reserve import FULL, CannotRecord, DiskFull
from mvw_cli.batch.store.shards import (
    Shard,
    all_parts,
    common_fingerprint,
    common_run,
    merge_command,
    open_shards,
    survey,
)
from mvw_cli.batch.store.sidecar import Sidecar, read_sidecar, sidecar_path, write_sidecar
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.files import check_writable, is_special, replacing, unwritable

_HELP = "mvw merge --help"


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
    the first counts. A table gets its log beside it, as with `mvw batch`.

    Args:
        names: of logs, or of tables that have their log beside them.
        output: ends in .jsonl, .csv or .parquet.
        overwrite: replace what is there and is none of the logs.

    Raises:
        UsageProblem: a log is missing or holds something else, the logs hold answers of different
            settings, or the output can't be written or is in the way.
        CannotRecord: the result can't be written; what was there is as it was.
    """
    shards = open_shards(names)
    target = Path(output)
    _check_output(names, shards, target, overwrite)
    name = str(log_of(target))
    log = Path(os.path.realpath(name))
    ordered = sorted(shards, key=lambda shard: shard.path != log)
    with closing(Index()) as total:
        try:
            with _writer_of(log, name) as lock:
                survey(ordered, total)
                run = common_run(shards, output)
                remarks = _mend(shards, log, lock)
                coverage = _write(ordered, total, log, lock, merge_command(names, output))
                _describe(log, name, _sidecar(shards, run, coverage))
        except OSError as error:
            raise _unwritten(output, error, "the logs are as they were") from None
    if is_table(target):
        export(log_of(target), target)
    return Merged(
        log_of(target),
        run,
        shards,
        total.done,
        total.failed,
        duplicates=sum(shard.records for shard in shards) - total.done - total.failed,
        gaps=coverage.gaps(),
        remarks=[*remarks, *_remarks(shards, log)],
    )


def _check_output(
    names: Sequence[str], shards: Sequence[Shard], target: Path, overwrite: bool
) -> None:
    if target.suffix.lower() not in (LOG, *TABLES):
        raise UsageProblem(
            f"-o {target}: records go to a .jsonl, .csv or .parquet file",
            cause=f"its name ends in {target.suffix}" if target.suffix else "its name has no end",
            hint=merge_command(names, str(target.with_suffix(LOG))),
        )
    log = log_of(target)
    check_writable(str(log), _HELP)
    if is_special(log):
        raise unwritable(str(log), "it is no regular file", _HELP)
    if is_table(target):
        check_table(target, _HELP)
    if overwrite or Path(os.path.realpath(log)) in [shard.path for shard in shards]:
        return
    for path in (log, target):
        if path.exists() and path.stat().st_size:
            raise UsageProblem(
                f"{path} exists, and is none of the logs to be joined",
                cause="it would be replaced",
                hint=f"{merge_command(names, str(target))} --overwrite",
            )


class _Lock:
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor


@contextmanager
def _writer_of(log: Path, name: str) -> Iterator[_Lock]:
    """Keep other writers off; the empty file that this may take does not stay."""
    was_there = log.exists()
    lock = _Lock(open_locked(log, name)[0])
    made = os.fstat(lock.descriptor)
    try:
        yield lock
    finally:
        with suppress(OSError):
            if not was_there and os.path.samestat(made, log.stat()):
                log.unlink()
        os.close(lock.descriptor)


def _mend(shards: Sequence[Shard], log: Path, lock: _Lock) -> list[str]:
    """Put aside what is damaged in the log that is going to be replaced."""
    told: list[str] = []
    for shard in shards:
        if shard.path == log:
            lock.descriptor, told = mend(log, lock.descriptor, shard.damage, shard.name)
    return told


def _keeps_all(shards: Sequence[Shard], total: Index, log: Path) -> bool:
    """Say whether the output is one of the logs, of which every record is to be kept."""
    first = shards[0]
    if first.path != log:
        return False
    kept = all(total.take(line.record) for line in first.lines() if line.record is not None)
    total.put_back()
    return kept


@contextmanager
def _appending(lock: _Lock) -> Iterator[BinaryIO]:
    """Add to the log, or leave it as it was."""
    size = os.fstat(lock.descriptor).st_size
    try:
        with open(lock.descriptor, "ab", closefd=False) as file:
            yield file
        os.fsync(lock.descriptor)
    except BaseException:
        os.ftruncate(lock.descriptor, size)
        raise


def _write(shards: Sequence[Shard], total: Index, log: Path, lock: _Lock, again: str) -> Coverage:
    """Write what is to be kept; return what that covers."""
    coverage = Coverage(all_parts(shards))
    missing = total.done + total.failed
    there = shards[0] if _keeps_all(shards, total, log) else None
    with replacing(log) if there is None else _appending(lock) as result:
        for shard in shards:
            for line in shard.lines():
                if line.record is not None and total.take(line.record):
                    coverage.see(line.record["id"])
                    missing -= 1
                    if shard is not there:
                        result.write(line.text)
        if missing:  # a run that tries failed items again replaces its log
            raise MvwError(
                "The logs have changed while they were read",
                cause=f"records that are gone: {missing}",
                hint=again,
            )
    return coverage


def _sidecar(shards: Sequence[Shard], run: str | None, coverage: Coverage) -> Sidecar | None:
    fingerprint = common_fingerprint(shards, run)
    return None if fingerprint is None else Sidecar(fingerprint, coverage.parts)


def _describe(log: Path, name: str, sidecar: Sidecar | None) -> None:
    """Write the file that goes with the log; no other must stay in its place."""
    if sidecar is not None and read_sidecar(log) == sidecar:
        return
    try:
        if sidecar is not None:
            write_sidecar(log, sidecar)
            return
    except OSError as error:
        sidecar_path(log).unlink(missing_ok=True)
        where = str(sidecar_path(Path(name)))
        raise _unwritten(where, error, f"the records are safe in {name}") from None
    sidecar_path(log).unlink(missing_ok=True)


def _remarks(shards: Sequence[Shard], log: Path) -> list[str]:
    told = []
    for shard in shards:
        if shard.path == log:
            continue
        tail = shard.damage.tail
        cut = tail is not None and tail.record is None
        if shard.is_being_written:
            told.append(f"{shard.name} is still being written; what comes now is left out")
            cut = False
        if count := shard.damage.junk + cut:
            lines = "1 damaged line is" if count == 1 else f"{count} damaged lines are"
            told.append(f"{shard.name}: {lines} left out")
    if not any(shard.parts for shard in shards):
        told.append("nothing tells how many items there should be: no log has its .run.json file")
    return told


def _unwritten(output: str, error: OSError, consolation: str) -> CannotRecord:
    kind = DiskFull if error.errno in FULL else CannotRecord
    folder = shlex.quote(os.path.dirname(os.path.realpath(output)))
    cause = f"{error.strerror or error}; {consolation}"
    return kind(f"Cannot write {output}", cause=cause, hint=f"df -h {folder}")
