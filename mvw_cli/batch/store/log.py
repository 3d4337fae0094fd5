"""The log of a batch: its records on disk, safe from the moment that `append` returns.

One process writes it, anybody may read it meanwhile. Nothing on disk is changed before the first
record comes, but for damage that is mended: a run that fails on loading leaves all as it was. It
does not know where items come from or what their answers mean.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mvw_cli.batch.items import Item, item_key
from mvw_cli.batch.store.durable import DurableFile
from mvw_cli.batch.store.fingerprint import Fingerprint
from mvw_cli.batch.store.index import Index
from mvw_cli.batch.store.record import dumps
from mvw_cli.batch.store.repair import inspect, mend, open_locked, rewrite
from mvw_cli.batch.store.reserve import FULL, CannotRecord, Reserve
from mvw_cli.batch.store.reserve import DiskFull as DiskFull
from mvw_cli.batch.store.sidecar import Part, Sidecar, mismatch, read_sidecar, write_sidecar
from mvw_cli.errors import MvwError, UsageProblem
from mvw_cli.files import check_writable, is_special, sync_folder, unwritable


class RecordLog:
    """An open log; a context manager. `append` and the questions may come from any thread."""

    path: Path
    """The file itself, symbolic links resolved."""
    recovered: list[str]
    """What was done to the file on opening it, one line each, for the user to know."""

    @classmethod
    def open(
        cls,
        path: Path,
        fingerprint: Fingerprint,
        *,
        overwrite: bool = False,
        retry_failed: bool = False,
        hint_overwrite: str = "mvw batch --help",
    ) -> Self:
        """Open a log to go on with it, or start one.

        What a crash left is mended: a last line that was cut is taken off, other damage goes to
        `<log>.damaged`.

        Args:
            fingerprint: of the run; it may still lack the revision, see `settle`.
            overwrite: start afresh. The old records go when the first new one comes.
            retry_failed: forget the failed records. They leave the file likewise.
            hint_overwrite: command that does the same with `overwrite`, for messages.

        Raises:
            UsageProblem: another process writes to it, it can't be written, it is a file of
                something else, or its records were made with other settings.
            DiskFull: there is no room to begin with.
        """
        return cls(path, fingerprint, overwrite, retry_failed, hint_overwrite)

    def __init__(
        self,
        path: Path,
        fingerprint: Fingerprint,
        overwrite: bool,
        retry_failed: bool,
        hint_overwrite: str,
    ) -> None:
        self.path = Path(os.path.realpath(path))
        self.recovered = []
        self._name = str(path)
        self._hint_overwrite = hint_overwrite
        self._overwrite, self._retry_failed = overwrite, retry_failed
        self._part: Part | None = None
        self._begun = False
        check_writable(self._name, "mvw batch --help")
        if is_special(self.path):
            raise unwritable(
                self._name, "it is no regular file", f"ls -l {shlex.quote(self._name)}"
            )
        self._is_new = not self.path.exists()
        self._index = Index()
        self._reserve = Reserve(self.path.with_name(f".{self.path.name}.reserve"))
        self._descriptor, locks = open_locked(self.path, self._name)
        try:
            self._sidecar = None if overwrite else read_sidecar(self.path)
            self._read()
            self._check(fingerprint)
            self._fingerprint = fingerprint
            self._reserve.lay()
            self._file = DurableFile(self._name, self._descriptor, self._reserve)
        except OSError as error:
            self._let_go()
            raise self._unready(error) from None
        except BaseException:
            self._let_go()
            raise
        if not locks:
            warning = "this file system has no locks: let no other process write to this file"
            self.recovered.append(f"{self._name}: {warning}")

    @property
    def done(self) -> int:
        """Answered items in the log."""
        return self._index.done

    @property
    def failed(self) -> int:
        """Failed items in the log."""
        return self._index.failed

    @property
    def nearly_full(self) -> bool:
        """Whether the disk is full and the space kept in reserve is in use: begin nothing new."""
        return self._reserve.used

    @property
    def run(self) -> str:
        """What records must carry under `run`; final once `settle` was called."""
        return self._fingerprint.short

    def settle(self, fingerprint: Fingerprint) -> None:
        """Say with what the model was really loaded; to be called before the first record.

        Raises:
            UsageProblem: the records in the log were made with something else.
        """
        self._check(fingerprint)
        self._fingerprint = fingerprint

    def describe(self, shard: tuple[int, int] | None, listed: int) -> None:
        """Say which part of the work this log is for; `mvw merge` finds gaps by it.

        Args:
            shard: `(i, n)` with 0 ≤ i < n, or None for the whole.
            listed: items of the work list.
        """
        self._part = Part(shard, listed)

    def is_done(self, item: Item, sha256: Sequence[str], listed: Callable[[str], bool]) -> bool:
        """Say whether the log holds a record of this item, failed ones included.

        A record of the same content and question whose own item is not listed any more is that
        of a file that was renamed: it counts for one item, and is claimed for it here.

        Args:
            sha256: of the bytes of each image.
            listed: whether the present work list has an item of this id.
        """
        return self._index.is_done(item_key(sha256, item.question), item.id, listed)

    def has_failed(self, item: Item) -> bool:
        """Say whether an item of this id and question has failed before."""
        return self._index.has_failed(item.id, item.question)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record; once this returns, the record outlives the process.

        It outlives a power cut within 64 records or a second, and once `flush` has returned.

        Raises:
            DiskFull: no space is left; the record is in a temporary file that the message names.
            CannotRecord: anything else is wrong with the file; the same.
        """
        if record["run"] != self.run:
            raise ValueError(f"a record of run {record['run']} for a log of run {self.run}")
        line = dumps(record)
        if not self._begun:
            self._begin(line)
        self._file.append(line)
        with suppress(MvwError):  # the index is of use only to who asks again
            self._index.add(record)

    def flush(self) -> None:
        """Sync: what was appended outlives a power cut.

        Raises:
            CannotRecord: as `append`.
        """
        self._file.flush()

    def close(self) -> None:
        """Sync and let go of the file. A file that got no record is not left behind.

        Raises:
            CannotRecord: as `append`, unless that was raised before.
        """
        if self._descriptor < 0:
            return
        try:
            self._file.close()
            self._leave_described()
        finally:
            self._let_go()

    def leave(self) -> None:
        """Take away what nobody needs, at once: for who ends the process without `close`."""
        self._reserve.drop()
        self._drop_if_empty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self) -> None:
        self._runs: set[str] = set()
        self._drops_failed = False
        if self._overwrite:
            return

        def see(record: dict[str, Any]) -> None:
            self._runs.add(record["run"])
            if self._retry_failed and record["status"] == "failed":
                self._drops_failed = True
            else:
                self._index.add(record)

        with self._index.many():
            damage = inspect(self.path, self._name, see)
        self._descriptor, self.recovered = mend(self.path, self._descriptor, damage, self._name)

    def _check(self, fingerprint: Fingerprint) -> None:
        """Refuse to mix answers of different settings in one log."""
        cause = mismatch(self._sidecar, self._runs, fingerprint)
        if cause is not None:
            what = f"{self._name} holds answers of other settings"
            raise UsageProblem(what, cause=cause, hint=self._hint_overwrite)

    def _begin(self, line: bytes) -> None:
        """Do what was put off until there is a record; `line` is that record."""
        self._begun = True
        try:
            self._prepare()
        except OSError as error:
            if error.errno not in FULL or not self._reserve.spend():
                self._file.give_up(error, line)
            try:
                self._prepare()
            except OSError as again:
                self._file.give_up(again, line)

    def _prepare(self) -> None:
        if self._overwrite:
            os.ftruncate(self._descriptor, 0)
        elif self._drops_failed:
            self._descriptor = rewrite(
                self.path, self._descriptor, self._name, keep=lambda one: one["status"] == "ok"
            )
        self._file.restart(self._descriptor)
        self._write_sidecar()
        if self._is_new:
            sync_folder(self.path.parent)

    def _write_sidecar(self) -> None:
        before = self._sidecar
        parts = () if before is None else before.parts
        if self._part is not None:
            parts = (self._part,)
        fingerprint = self._fingerprint
        if before is not None and self._runs and not fingerprint.settled:
            fingerprint = before.fingerprint  # it may know more, and it does not contradict
        now = Sidecar(fingerprint, parts)
        if now != before:
            write_sidecar(self.path, now)
            self._sidecar = now

    def _leave_described(self) -> None:
        """Bring the sidecar up to date where no record came, or the work was described late."""
        has_records = self._begun or (self._runs and not self._overwrite)
        if has_records or (self._is_new and self._part is not None and not self._part.listed):
            self._is_new = False  # a shard without items leaves its empty log
            try:
                self._write_sidecar()
            except OSError as error:
                raise self._unready(error) from None

    def _let_go(self) -> None:
        self._index.close()
        self._reserve.drop()
        self._drop_if_empty()
        os.close(self._descriptor)
        self._descriptor = -1

    def _drop_if_empty(self) -> None:
        with suppress(OSError):
            if self._is_new and not self._begun:
                self.path.unlink()

    def _unready(self, error: OSError) -> CannotRecord:
        kind = DiskFull if error.errno in FULL else CannotRecord
        folder = shlex.quote(str(self.path.parent))
        cause = error.strerror or str(error)
        return kind(f"Cannot write {self._name}", cause=cause, hint=f"df -h {folder}")
