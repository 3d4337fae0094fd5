"""The log of a batch: its records on disk, safe from the moment that `append` returns.

One process writes it, anybody may read it meanwhile. Nothing on disk is changed before the first
record comes, but for damage that is repaired: a run that fails on loading leaves all as it was.
"""

from __future__ import annotations

import os
import shlex
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from mvw_cli.batch.items import Item, item_key
from mvw_cli.batch.store.fingerprint import (
    Fingerprint,
    Sidecar,
    WorkPart,
    mismatch,
    read_sidecar,
    write_sidecar,
)
from mvw_cli.batch.store.jsonl import JsonlFile, cannot_write
from mvw_cli.batch.store.reader import LogReader, repair, whole_lines
from mvw_cli.batch.store.record import clean, digest, dumps
from mvw_cli.errors import UsageProblem
from mvw_cli.files import check_writable, is_special, unwritable


class RecordIndex:
    """Which items have a record, each once: an answer counts before a failure.

    Items are known by digests of 16 bytes, so that one takes some 200 bytes of memory, however long
    its name and its answer are. Any thread may ask.
    """

    def __init__(self) -> None:
        self.answered = 0
        """Answered items, by content and id."""
        # By id and question: the digest of the id, then that of each content that has an answer.
        self._answers: dict[bytes, bytes] = {}
        # The same of items that failed and have no answer; the content is b"" where none was read.
        self._failures: dict[bytes, bytes] = {}
        self._taken: set[bytes] = set()
        self._unclaimed: Counter[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def failed(self) -> int:
        """Items that failed and have no answer, by id and question."""
        return len(self._failures)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record in."""
        name = _name(record["id"], record["question"])
        key = b"" if record["key"] is None else digest(record["key"])
        with self._lock:
            known = self._answers.get(name)
            if record["status"] != "ok":
                if known is None:
                    self._failures.setdefault(name, digest(clean(record["id"])) + key)
                return
            self._failures.pop(name, None)
            if known is None:
                known = digest(clean(record["id"]))
            elif key in _keys(known):
                return
            self._answers[name] = known + key
            self.answered += 1

    def take(self, record: Mapping[str, Any]) -> bool:
        """Return whether to keep this record of its item's: True once for each."""
        name = _name(record["id"], record["question"])
        if record["status"] == "ok":
            key = digest(record["key"])
            wanted, name = key in _keys(self._answers.get(name, b"")), name + key
        else:
            wanted = name in self._failures
        if not wanted or name in self._taken:
            return False
        self._taken.add(name)
        return True

    def is_done(self, item: Item, key: str, listed: Callable[[bytes], bool]) -> bool:
        """Whether an item needs no work; a record of a renamed file is claimed for it."""
        name, wanted = _name(item.id, item.question), digest(key)
        with self._lock:
            for known in (self._answers.get(name), self._failures.get(name)):
                if known is not None and wanted in _keys(known):
                    return True
            if self._unclaimed is None:
                self._unclaimed = self._of_unlisted(listed)
            if not self._unclaimed[wanted]:
                return False
            self._unclaimed[wanted] -= 1
            return True

    def has_failed(self, id: str, question: str) -> bool:
        """Whether an item of this id and question failed, and was not answered since."""
        return _name(id, question) in self._failures

    def _of_unlisted(self, listed: Callable[[bytes], bool]) -> Counter[bytes]:
        """Count by content the records whose own item is not in the work list any more."""
        found: Counter[bytes] = Counter()
        for known in (*self._answers.values(), *self._failures.values()):
            if not listed(known[:16]):
                found.update(_keys(known))
        return found


class RecordLog:
    """An open log; a context manager. `append` and the questions may come from any thread."""

    def __init__(
        self,
        path: Path,
        fingerprint: Fingerprint,
        *,
        part: WorkPart | None = None,
        overwrite: bool = False,
        retry_failed: bool = False,
        hint_overwrite: str = "mvw batch --help",
    ) -> None:
        """Open a log to go on with it, or start one.

        What a crash left is repaired: a last line that was cut is taken off, other damage goes to
        `<log>.damaged`.

        Args:
            fingerprint: of the run; it may still lack the revision, see `settle`.
            part: of the work that this log is for; `mvw merge` finds gaps by it.
            overwrite: start afresh. The old records go when the first new one comes.
            retry_failed: forget the failed records. They leave the file likewise.
            hint_overwrite: command that does the same with `overwrite`, for messages.

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
        self._hint_overwrite = hint_overwrite
        self._overwrite, self._retry_failed = overwrite, retry_failed
        self._fingerprint = fingerprint
        self._part = part
        self._begun = self._drops_failed = False
        self._runs: set[str] = set()
        self._index = RecordIndex()
        check_writable(self._name, "mvw batch --help")
        if is_special(self.path):
            hint = f"ls -l {shlex.quote(self._name)}"
            raise unwritable(self._name, "it is no regular file", hint)
        self._file = JsonlFile(self.path, self._name)
        try:
            self._sidecar = None if overwrite else read_sidecar(self.path)
            if not overwrite:
                self._read()
            self._check(fingerprint)
            self._file.check_room()
        except OSError as error:
            self._file.close()
            raise cannot_write(self._name, error) from None
        except BaseException:
            self._file.close()
            raise
        if not self._file.has_lock:
            warning = "this file system has no locks: let no other process write to this file"
            self.recovered.append(f"{self._name}: {warning}")

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
        """Tell with what the model was really loaded; to be called before the first record.

        Raises:
            UsageProblem: the records in the log were made with something else.
        """
        self._check(fingerprint)
        self._fingerprint = fingerprint

    def is_done(self, item: Item, sha256: Sequence[str], listed: Callable[[bytes], bool]) -> bool:
        """Whether the log holds a record of this item, failed ones included.

        A record of the same content and question whose own item is not listed any more is that
        of a file that was renamed: it counts for one item, and is claimed for it here.

        Args:
            sha256: of the bytes of each image.
            listed: whether the work list has an item of the id with this digest, see
                `WorkList.holds`; the same at each call.
        """
        return self._index.is_done(item, item_key(sha256, item.question), listed)

    def has_failed(self, item: Item) -> bool:
        """Whether an item of this id and question has failed before."""
        return self._index.has_failed(item.id, item.question)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record, as `JsonlFile.append` does.

        Raises:
            DiskFull: no space is left. The record is not in the log, which ends with a whole one.
            CannotRecord: anything else is wrong with the file; the same.
        """
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
        """Sync, as `JsonlFile.flush` does: what was appended outlives a power cut."""
        self._file.flush()

    def close(self) -> None:
        """Sync and let go of the file. A file that got no record is not left behind."""
        if self._file.descriptor < 0:
            return
        is_empty_shard = not self._file.keep and self._part is not None and not self._part.listed
        try:
            if self._begun or self._runs or is_empty_shard:  # a merge is to know of such a shard
                self._file.keep = True
                self._write_sidecar()
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

    def _read(self) -> None:
        """Learn what is in the file, and repair it."""
        records = LogReader(self.path, self._name)
        for record, _ in records:
            self._runs.add(record["run"])
            if self._retry_failed and record["status"] == "failed":
                self._drops_failed = True
            else:
                self._index.add(record)
        self.recovered = repair(self._file, records)

    def _check(self, fingerprint: Fingerprint) -> None:
        """Refuse to mix answers of different settings in one log."""
        cause = mismatch(self._sidecar, self._runs, fingerprint)
        if cause is not None:
            what = f"{self._name} holds answers of other settings"
            raise UsageProblem(what, cause=cause, hint=self._hint_overwrite)

    def _begin(self) -> None:
        """Do what was put off until there is a record."""
        if self._overwrite:
            self._file.truncate(0)
        elif self._drops_failed:
            kept = whole_lines(self.path, self._name, lambda record: record["status"] == "ok")
            self._file.rewrite(kept)
        self._write_sidecar()
        self._begun = True

    def _write_sidecar(self) -> None:
        before, fingerprint = self._sidecar, self._fingerprint
        parts = () if before is None else before.parts
        if self._part is not None:
            parts = (self._part,)
        if self._runs and not fingerprint.settled:
            if before is None:
                return  # what the records were made with is not known
            fingerprint = before.fingerprint  # it may know more, and it does not contradict
        now = Sidecar(fingerprint, parts)
        if now != before:
            write_sidecar(self.path, now)
            self._sidecar = now


def _name(id: str, question: str) -> bytes:
    id = clean(id)
    # With the length, ("ab", "c") and ("a", "bc") differ.
    return digest(f"{len(id)} {id}{clean(question)}")


def _keys(known: bytes) -> list[bytes]:
    """Return the digests of contents that follow that of the id."""
    return [known[start : start + 16] for start in range(16, len(known), 16)]
