"""The log of a batch: its records on disk, safe from the moment that `append` returns.

One process writes it, anybody may read it meanwhile. Nothing on disk is changed before the first
record comes, but for damage that is repaired: a run that fails on loading leaves all as it was.
"""

from __future__ import annotations

import json
import os
import shlex
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

from mvw_cli.batch.items import Item, item_key
from mvw_cli.batch.store.fingerprint import (
    Fingerprint,
    Sidecar,
    WorkPart,
    mismatch,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from mvw_cli.batch.store.jsonl import JsonlFile, cannot_write
from mvw_cli.batch.store.record import SCHEMA_VERSION, clean, digest, dumps
from mvw_cli.errors import UsageProblem
from mvw_cli.files import check_writable, is_special, unwritable
from mvw_cli.text import plural

Record = dict[str, Any]

_PREFIX = b'{"schema_version":'
"""How the line of a record starts. Within a record the quotes are escaped, so that it occurs
nowhere else."""
_PIECE = 16 * 1024 * 1024
"""Lines are read in pieces of at most this many bytes. No record is so long; damage may be."""


class LogReader:
    """The records of a log. What is damaged is counted by the iteration that comes upon it."""

    def __init__(
        self, path: Path, name: str, *, put_aside: Callable[[bytes], object] | None = None
    ) -> None:
        """Take note of what to read.

        Args:
            name: of the file, for messages.
            put_aside: gets what is damaged, the last line apart.
        """
        self.path, self.name = path, name
        self._put_aside = put_aside
        self.junk = 0
        """Lines that hold something else than a record, the last one apart."""
        self.cut_at: int | None = None
        """Offset of the last line, where that has been cut."""
        self.lacks_end = False
        """Whether the last record is whole, but for the end of its line."""

    def __iter__(self) -> Iterator[tuple[Record, bytes]]:
        """Yield each record, and its line.

        Raises:
            UsageProblem: the file can't be read, or is of something else.
        """
        self.junk, self.cut_at, self.lacks_end = 0, None, False
        number = start = 0
        found = inside = False
        for piece in self._pieces():
            number += not inside
            inside = not piece.endswith(b"\n")
            is_last = inside and len(piece) < _PIECE
            record, line, junk = _split(piece)
            if record is not None:
                self._check(record, number)
                found = True
            self.lacks_end = is_last and record is not None
            if junk and is_last and record is None:
                self.cut_at = start
            elif junk:
                self.junk += 1
                if self._put_aside is not None:
                    self._put_aside(junk)
            if record is not None:
                yield record, line
            start += len(piece)
        if not found and (self.junk or self.cut_at is not None):
            self._check_start()

    def _pieces(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                while piece := file.readline(_PIECE):
                    yield piece
        except OSError as error:
            raise cannot_read(self.name, error.strerror or str(error)) from None

    def _check_start(self) -> None:
        """Tell a log whose first record was cut from a file of something else."""
        with self.path.open("rb") as file:
            head = file.read(100)
        is_cut = head.startswith(_PREFIX) or _PREFIX.startswith(head)
        if not is_cut and not sidecar_path(self.path).exists():
            raise not_a_log(self.name, "it holds no record")

    def _check(self, record: Record, number: int) -> None:
        version = record.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            known = f"this mvw knows {SCHEMA_VERSION}"
            cause = f"line {number} has schema_version {version}, and {known}"
            raise not_a_log(self.name, cause, "pip install --upgrade mvw")
        texts = all(isinstance(record.get(key), str) for key in ("id", "run", "question"))
        ok = record.get("status") == "ok" and isinstance(record.get("key"), str)
        failed = record.get("status") == "failed" and isinstance(record.get("key"), str | None)
        if version != SCHEMA_VERSION or not texts or not (ok or failed):
            raise not_a_log(self.name, f"line {number} is JSON of something else")


def repair(file: JsonlFile, read: LogReader) -> list[str]:
    """Take out of a log what is damaged; return what was done, one line each.

    Damage in the middle goes to `<log>.damaged`, what is left of a last line goes away. On a full
    disk the log is as it was.

    Args:
        read: has read the file to its end.
    """
    told = []
    if read.junk:
        file.rewrite(whole_lines(read.path, read.name))
        lines = plural(read.junk, "damaged line")
        told.append(f"{read.name}: {lines} moved to {read.name}.damaged")
    elif read.cut_at is not None:
        file.truncate(read.cut_at)
    elif read.lacks_end:
        file.append(b"\n")
    if read.cut_at is not None:
        told.append(f"{read.name}: the last line was cut, and has been taken off")
    return told


def whole_lines(
    path: Path, name: str, keep: Callable[[Record], bool] = lambda record: True
) -> Iterator[bytes]:
    """Yield the lines of records that are to be kept; damage goes to `<log>.damaged`."""

    def put_aside(junk: bytes) -> None:
        with path.with_name(f"{path.name}.damaged").open("ab") as file:
            file.write(junk if junk.endswith(b"\n") else junk + b"\n")
            file.flush()
            os.fsync(file.fileno())

    for record, line in LogReader(path, name, put_aside=put_aside):
        if keep(record):
            yield line


def cannot_read(name: str, cause: str) -> UsageProblem:
    """Return the error for a log that can't be read."""
    folder = shlex.quote(os.path.dirname(name) or ".")
    return UsageProblem(f"Cannot read {name}", cause=cause, hint=f"ls -l {folder}")


def not_a_log(name: str, cause: str, hint: str | None = None) -> UsageProblem:
    """Return the error for a file that is not ours to read or go on with."""
    hint = hint or f"head -c 300 {shlex.quote(name)}"
    return UsageProblem(f"{name} is not a log of records", cause=cause, hint=hint)


def _split(piece: bytes) -> tuple[Record | None, bytes, bytes]:
    """Return the record of a line, if any, its bytes, and what else is in the line."""
    body = piece.strip()
    if not body:
        return None, b"", b""
    record = _parse(body)
    if record is not None:
        return record, body + b"\n", b""
    # A record whose line starts with what was left of another, or with NUL bytes.
    cut = piece.rfind(_PREFIX, 1)
    record = _parse(piece[cut:]) if cut > 0 else None
    if record is not None:
        return record, piece[cut:].strip() + b"\n", piece[:cut]
    return None, b"", piece


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


_decode = json.JSONDecoder(parse_constant=_no_number).decode


def _parse(body: bytes) -> Record | None:
    """Read a JSON object; None for whatever is none."""
    if not body.startswith(b"{"):
        return None
    try:
        value = _decode(body.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


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
        check_writable(self._name)
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
        """Tell with what the model was really loaded, before the first record is appended."""
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
