"""Logs that are to be joined: found, read, and known to hold answers of the same settings.

Nothing is written here. What becomes of the records is `merge.py`'s affair.
"""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvw_cli.batch.store.export import log_of
from mvw_cli.batch.store.fingerprint import Fingerprint, describe_difference
from mvw_cli.batch.store.index import Index
from mvw_cli.batch.store.lines import Line, read_lines
from mvw_cli.batch.store.repair import Damage, inspect
from mvw_cli.batch.store.sidecar import Part, Sidecar, read_sidecar
from mvw_cli.errors import UsageProblem
from mvw_cli.files import is_special

_NAMED = 8
"""Logs that a hint names at most: with more of them it could not be read."""


@dataclass(slots=True)
class Shard:
    """One of the logs; the counts are those of `survey`."""

    name: str
    """The log, as the user calls it."""
    path: Path
    """The same, symbolic links resolved."""
    sidecar: Sidecar | None
    answered: int = 0
    failed: int = 0
    """Items that failed and have no answer in this log."""
    records: int = 0
    """Records in it, repeated ones included."""
    new: int = 0
    """Items that the logs before did not have."""
    damage: Damage = field(default_factory=Damage)
    runs: set[str] = field(default_factory=set)
    """Short hashes of the settings that its records were made with."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """Which part of the work it is for; empty where nothing tells it."""
        return () if self.sidecar is None else self.sidecar.parts

    def lines(self) -> Iterator[Line]:
        """Read the log.

        Raises:
            UsageProblem: it can't be read, or holds something else.
        """
        try:
            with self.path.open("rb") as file:
                yield from read_lines(file, self.name)
        except OSError as error:
            raise _unread(self.name, error.strerror or str(error)) from None

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


def open_shards(names: Iterable[str]) -> list[Shard]:
    """Find logs, each once; a table stands for the log beside it.

    Raises:
        UsageProblem: one is missing or can't be read.
    """
    shards: dict[Path, Shard] = {}
    for name in names:
        log = log_of(Path(name))
        try:
            path = Path(os.path.realpath(log))
            if is_special(path):
                raise _unread(str(log), "it is no regular file")
            with path.open("rb"):
                shards.setdefault(path, Shard(str(log), path, read_sidecar(path)))
        except OSError as error:
            raise _unread(str(log), error.strerror or str(error)) from None
    return list(shards.values())


def survey(shards: Sequence[Shard], total: Index) -> None:
    """Read all logs and count.

    Args:
        total: takes all records in.

    Raises:
        UsageProblem: one can't be read, or is a file of something else.
    """
    # What no run has described, as records rescued from a full disk, adds to what has been.
    for shard in sorted(shards, key=lambda one: not one.parts):
        before = total.done + total.failed
        with closing(Index()) as own, own.many(), total.many():

            def see(record: dict[str, Any], shard: Shard = shard, own: Index = own) -> None:
                shard.runs.add(record["run"])
                shard.records += 1
                own.add(record)
                total.add(record)

            try:
                shard.damage = inspect(shard.path, shard.name, see)
            except OSError as error:
                raise _unread(shard.name, error.strerror or str(error)) from None
            shard.answered, shard.failed = own.done, own.failed
        shard.new = total.done + total.failed - before


def merge_command(names: Sequence[str], output: str) -> str:
    """Write the command that joins logs, for a hint."""
    logs = names if len(names) <= _NAMED else ["SHARDS"]
    return shlex.join(["mvw", "merge", *logs, "-o", output])


def common_run(shards: Sequence[Shard], output: str) -> str | None:
    """Return the short hash of the settings of all records; None without records.

    Args:
        output: of the command, for its hint.

    Raises:
        UsageProblem: there are several.
    """
    filled = [shard for shard in shards if shard.runs]
    if not filled:
        return None
    first = filled[0]
    run = min(first.runs)
    for shard in filled:
        strange = sorted(shard.runs - {run})
        if not strange:
            continue
        if shard is first:
            what = f"{shard.name} holds answers of different settings"
            cause = f"there are records of run {run} and of run {strange[0]}"
        else:
            what = f"{shard.name} holds answers of other settings than {first.name}"
            cause = _difference(first, shard) or (
                f"records of run {strange[0]} are in it, of run {run} in {first.name}; "
                "a .run.json file that would tell the difference is missing"
            )
        fitting = [one.name for one in shards if one.runs <= {run}] or [first.name]
        raise UsageProblem(what, cause=cause, hint=merge_command(fitting, output))
    return run


def common_fingerprint(shards: Sequence[Shard], run: str | None) -> Fingerprint | None:
    """Return the settings of all records; None where no log has them beside it."""
    known = [shard.sidecar.fingerprint for shard in shards if shard.sidecar is not None]
    fitting = [one for one in known if run is None or one.short == run]
    return max(fitting, key=lambda one: one.settled, default=None)


def all_parts(shards: Sequence[Shard]) -> list[Part]:
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
    return [*(Part(None, listed) for listed in undivided), *divided]


def _difference(first: Shard, other: Shard) -> str | None:
    if first.sidecar is None or other.sidecar is None:
        return None
    difference = first.sidecar.fingerprint.difference(other.sidecar.fingerprint)
    sides = (f"in {first.name}", f"in {other.name}")
    return describe_difference(difference, sides=sides) if difference else None


def _unread(log: str, cause: str) -> UsageProblem:
    folder = shlex.quote(os.path.dirname(log) or ".")
    return UsageProblem(f"Cannot read {log}", cause=cause, hint=f"ls -l {folder}")
