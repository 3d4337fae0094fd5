"""The log of a batch: its records on disk, safe from the moment that `append` returns.

One process writes it, anybody may read it meanwhile. Nothing on disk is changed before the first
record comes, but for damage that is repaired: a run that fails on loading leaves all as it was.
"""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from mvw_cli.batch.items import Item, item_key
from mvw_cli.batch.store.fingerprint import (
    Fingerprint,
    Sidecar,
    describe_difference,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from mvw_cli.batch.store.jsonl import JsonlFile, cannot_write
from mvw_cli.batch.store.record import SCHEMA_VERSION, digest, dumps
from mvw_cli.errors import UsageProblem
from mvw_cli.files import check_writable, is_special, unwritable
from mvw_cli.text import plural

Record = dict[str, Any]

_START = b'{"schema_version":'
"""How the line of a record starts."""


class LogReader:
    """The records of a log, from front to back; after an iteration, what else is in it."""

    def __init__(self, path: Path, name: str) -> None:
        """Take note of what to read; messages call it `name`."""
        self.path, self.name = path, name
        self.damaged: list[bytes] = []
        """Whole lines that hold something else than a record."""
        self.cut_at: int | None = None
        """Offset of the last line, where that lacks its end."""
        self.number = 0
        """Of the line that was read last, from 1."""

    def __iter__(self) -> Iterator[tuple[Record, bytes]]:
        """Yield each record, and its line.

        Raises:
            UsageProblem: the file can't be read, or is of something else.
        """
        self.damaged, self.cut_at = [], None
        found, offset = False, 0
        try:
            with self.path.open("rb") as file:
                for self.number, line in enumerate(file, start=1):
                    if not line.endswith(b"\n"):
                        self.cut_at = offset
                    elif (record := _parse(line)) is not None:
                        self._check(record)
                        found = True
                        yield record, line
                    elif line.strip():
                        self.damaged.append(line)
                    offset += len(line)
        except OSError as error:
            raise cannot_read(self.name, error.strerror or str(error)) from None
        if not found and (self.damaged or self.cut_at is not None):
            self._check_start()

    def _check_start(self) -> None:
        """Tell a log whose first record was cut from a file of something else."""
        with self.path.open("rb") as file:
            head = file.read(len(_START))
        if not _START.startswith(head) and not sidecar_path(self.path).exists():
            raise not_a_log(self.name, "it holds no record")

    def _check(self, record: Record) -> None:
        version, number = record.get("schema_version"), self.number
        if isinstance(version, int) and version > SCHEMA_VERSION:
            known = f"this mvw knows {SCHEMA_VERSION}"
            cause = f"line {number} has schema_version {version}, and {known}"
            raise not_a_log(self.name, cause, "pip install --upgrade mvw")
        texts = all(isinstance(record.get(key), str) for key in ("id", "run", "question"))
        ok = record.get("status") == "ok" and isinstance(record.get("key"), str)
        if version != SCHEMA_VERSION or not texts or not (ok or record.get("status") == "failed"):
            raise not_a_log(self.name, f"line {number} is JSON of something else")


def _parse(line: bytes) -> Record | None:
    """Read a JSON object; None for whatever is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def repair(file: JsonlFile, read: LogReader) -> list[str]:
    """Take out of a log what is damaged; return what was done, one line each.

    Damaged lines go to `<log>.damaged`, what is left of a last line goes away. On a full disk the
    log is as it was.

    Args:
        read: has read the file to its end.
    """
    told = []
    if read.damaged:
        with damaged_path(read.path).open("ab") as aside:
            aside.writelines(read.damaged)
            aside.flush()
            os.fsync(aside.fileno())
        lines = plural(len(read.damaged), "damaged line")
        told.append(f"{read.name}: {lines} moved to {read.name}.damaged")
    if read.cut_at is not None:
        told.append(f"{read.name}: the last line was cut, and has been taken off")
    if read.damaged:
        file.rewrite(line for _, line in LogReader(read.path, read.name))
    elif read.cut_at is not None:
        file.truncate(read.cut_at)
    return told


def damaged_path(log: Path) -> Path:
    """Name the file that damaged lines of a log go to."""
    return log.with_name(f"{log.name}.damaged")


def cannot_read(name: str, cause: str) -> UsageProblem:
    """Return the error for a log that can't be read."""
    folder = shlex.quote(os.path.dirname(name) or ".")
    return UsageProblem(f"Cannot read {name}", cause=cause, hint=f"ls -l {folder}")


def not_a_log(name: str, cause: str, hint: str | None = None) -> UsageProblem:
    """Return the error for a file that is not ours to read or go on with."""
    hint = hint or f"head -c 300 {shlex.quote(name)}"
    return UsageProblem(f"{name} is not a log of records", cause=cause, hint=hint)


class RecordIndex:
    """Which items have a record, each once: an answer counts before a failure.

    Items are known by digests of 16 bytes, so that one takes some 200 bytes of memory, however long
    its name and its answer are.
    """

    def __init__(self) -> None:
        # Of id, question and content; of id and question; the same of items without an answer.
        self._answers: set[bytes] = set()
        self._answered: set[bytes] = set()
        self._failed: set[bytes] = set()
        self._taken: set[bytes] = set()

    @property
    def answered(self) -> int:
        """Answered items, by id, question and content."""
        return len(self._answers)

    @property
    def failed(self) -> int:
        """Items that failed and have no answer, by id and question."""
        return len(self._failed)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record in."""
        name = digest(record["id"], record["question"])
        if record["status"] == "ok":
            self._answers.add(digest(record["id"], record["question"], record["key"]))
            self._answered.add(name)
            self._failed.discard(name)
        elif name not in self._answered:
            self._failed.add(name)

    def take(self, record: Mapping[str, Any]) -> bool:
        """Return whether to keep this record of its item's: True once for each."""
        name = digest(record["id"], record["question"])
        wanted = name in self._failed
        if record["status"] == "ok":
            name = digest(record["id"], record["question"], record["key"])
            wanted = name in self._answers
        if not wanted or name in self._taken:
            return False
        self._taken.add(name)
        return True

    def has_answer(self, id: str, question: str, key: str) -> bool:
        """Whether an item has an answer to what it asks now."""
        return digest(id, question, key) in self._answers

    def has_failed(self, id: str, question: str) -> bool:
        """Whether an item of this id and question failed, and was not answered since."""
        return digest(id, question) in self._failed


class RecordLog:
    """An open log; a context manager. `append` and the questions may come from any thread."""

    def __init__(
        self,
        path: Path,
        fingerprint: Fingerprint,
        *,
        listed: Container[str] = (),
        shards: Mapping[tuple[int, int], int] | None = None,
        overwrite: bool = False,
        retry_failed: bool = False,
        hint: str = "mvw batch --help",
    ) -> None:
        """Open a log to go on with it, or start one.

        What a crash left is repaired: a last line that was cut is taken off, other damage goes to
        `<log>.damaged`.

        Args:
            fingerprint: of the run; it may still lack the revision, see `settle`.
            listed: ids of the work list. The answer to any other item is that of a file that was
                renamed or has gone.
            shards: `(i, n)` that the log is for, and how many items it has; `mvw merge` finds gaps
                by it.
            overwrite: start afresh. The old records go when the first new one comes.
            retry_failed: forget the failed records. They leave the file likewise.
            hint: command that does the same with another log, for messages.

        Raises:
            UsageProblem: another process writes to it, it can't be written, it is a file of
                something else, or its records were made with other settings.
            DiskFull: there is no room to begin with.
        """
        self.path = Path(os.path.realpath(path))
        """The file itself, symbolic links resolved."""
        self.recovered: list[str] = []
        """What was done to the file on opening it, one line each, for the user to know."""
        self._name = str(path)
        self._hint = hint
        self._overwrite, self._retry_failed = overwrite, retry_failed
        self._fingerprint, self._shards = fingerprint, dict(shards or {})
        self._begun = self._drops_failed = False
        self._runs: set[str] = set()
        self._index = RecordIndex()
        # By content, answers whose own item is not listed: each is claimed by one that is.
        self._unclaimed: Counter[str] = Counter()
        check_writable(self._name)
        if is_special(self.path):
            hint = f"ls -l {shlex.quote(self._name)}"
            raise unwritable(self._name, "it is no regular file", hint)
        self._file = JsonlFile(self.path, self._name)
        try:
            self._sidecar = None if overwrite else read_sidecar(self.path)
            if not overwrite:
                self._read(listed)
            self._check(fingerprint)
            self._file.check_room()
        except OSError as error:
            self._file.close()
            raise cannot_write(self._name, error) from None
        except BaseException:
            self._file.close()
            raise

    @property
    def done(self) -> int:
        """Answered items in the log."""
        return self._index.answered

    @property
    def failed(self) -> int:
        """Failed items in the log."""
        return self._index.failed

    @property
    def run(self) -> str:
        """What records must carry under `run`; final once `settle` was called."""
        return self._fingerprint.short

    def settle(self, fingerprint: Fingerprint) -> None:
        """Tell with what the model was really loaded, before the first record is appended."""
        self._check(fingerprint)
        self._fingerprint = fingerprint

    def is_done(self, item: Item, sha256: Sequence[str]) -> bool:
        """Whether the log holds an answer to this item.

        One to the same content and question whose own item is not listed any more is that of a
        file that was renamed: it counts for one item, and is claimed for it here.

        Args:
            sha256: of the bytes of each image.
        """
        key = item_key(sha256, item.question)
        if self._index.has_answer(item.id, item.question, key):
            return True
        if not self._unclaimed[key]:
            return False
        self._unclaimed[key] -= 1
        return True

    def has_failed(self, item: Item) -> bool:
        """Whether an item of this id and question has failed before."""
        return self._index.has_failed(item.id, item.question)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record, as `JsonlFile.append` does."""
        if record["run"] != self.run:
            raise ValueError(f"a record of run {record['run']} for a log of run {self.run}")
        what = f"the record of {record['id']}"
        if not self._begun:
            try:
                self._begin()
            except OSError as error:
                raise cannot_write(self._name, error, f"{what} is not in it") from None
        self._file.append(dumps(record), what=what)
        self._index.add(record)

    def flush(self) -> None:
        """Sync: what was appended outlives a power cut."""
        self._file.flush()

    def close(self) -> None:
        """Sync and let go of the file. A file that got no record is not left behind."""
        if self._file.descriptor < 0:
            return
        try:
            if not self._file.keep and [*self._shards.values()] == [0]:
                self._write_sidecar()  # a merge is to know of a shard that has no item
                self._file.keep = True
        except OSError as error:
            raise cannot_write(self._name, error) from None
        finally:
            self._file.close()

    def leave(self) -> None:
        """Take away what nobody needs, at once: for who ends the process without `close`."""
        self._file.discard_if_empty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self, listed: Container[str]) -> None:
        """Learn what is in the file, and repair it."""
        records = LogReader(self.path, self._name)
        for record, _ in records:
            self._runs.add(record["run"])
            if self._retry_failed and record["status"] == "failed":
                self._drops_failed = True
                continue
            before = self._index.answered
            self._index.add(record)
            if self._index.answered > before and record["id"] not in listed:
                self._unclaimed[record["key"]] += 1
        self.recovered = repair(self._file, records)

    def _check(self, fingerprint: Fingerprint) -> None:
        """Refuse to mix answers of different settings in one log."""
        if not self._runs:
            return
        known = self._sidecar.fingerprint if self._sidecar else fingerprint
        cause = describe_difference(known.difference(fingerprint))
        others = sorted(self._runs - {known.short})
        # Without the sidecar only the hash can tell, once the model is loaded.
        if not cause and others and (self._sidecar or fingerprint.settled):
            cause = f"records of run {others[0]} are in it, this is run {known.short}"
            if self._sidecar is None:
                cause += "; the .run.json file that would tell the difference is missing"
        if cause:
            what = f"{self._name} holds answers of other settings"
            raise UsageProblem(what, cause=cause, hint=self._hint)

    def _begin(self) -> None:
        """Do what was put off until there is a record."""
        if self._overwrite:
            self._file.truncate(0)
        elif self._drops_failed:
            records = LogReader(self.path, self._name)
            self._file.rewrite(line for record, line in records if record["status"] == "ok")
        self._write_sidecar()
        self._begun = True

    def _write_sidecar(self) -> None:
        now = Sidecar(self._fingerprint, self._shards)
        if now != self._sidecar:
            write_sidecar(self.path, now)
            self._sidecar = now
