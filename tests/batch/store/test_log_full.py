"""A full disk, a read-only folder, a file that fails: what was answered is not lost."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from records import fingerprint, ids, no_space, ok
from waiting import until

from mvw_cli.batch.store import jsonl
from mvw_cli.batch.store.jsonl import CannotRecord, DiskFull
from mvw_cli.batch.store.log import RecordLog
from mvw_cli.batch.store.record import dumps
from mvw_cli.errors import ExitCode


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def opened(path: Path, **options: Any) -> RecordLog:
    return RecordLog(path, fingerprint(), **options)


# Faults at the system call


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let system calls on the log's own descriptor fail, after having done half their work."""

    def install(call: str, log: RecordLog, *numbers: int) -> None:
        real, left = getattr(os, call), list(numbers)

        def fail(descriptor: int, *data: bytes) -> Any:
            if descriptor != log._file.descriptor or not left:
                return real(descriptor, *data)
            number = left.pop(0)
            if data and number == 0:
                return real(descriptor, data[0][: len(data[0]) // 2])
            if data:
                real(descriptor, data[0][: len(data[0]) // 2])
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, call, fail)

    return install


def test_a_write_that_stops_half_way_goes_on(path: Path, faults: Callable[..., None]) -> None:
    with opened(path) as log:
        faults("write", log, 0)
        log.append(ok("a"))
        assert ids(path) == ["a"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_record_that_the_disk_does_not_take(
    path: Path, faults: Callable[..., None], number: int
) -> None:
    with opened(path) as log:
        log.append(ok("a"))
        faults("write", log, number)
        with pytest.raises(DiskFull) as caught:
            log.append(ok("b"))
        assert path.read_bytes() == dumps(ok("a"))  # half of it had been written
        with pytest.raises(DiskFull) as again:
            log.append(ok("c"))
        assert (log.done, log.failed) == (1, 0)
        log.flush()
    assert caught.value.exit_code == ExitCode.FAILURE
    assert caught.value.cause == f"{os.strerror(number)}; the record of b is not in it"
    assert again.value.cause == f"{os.strerror(number)}; the record of c is not in it"
    with opened(path) as log:
        assert (log.done, log.recovered) == (1, [])


def test_a_cut_line_that_can_not_be_taken_off_is_repaired_by_the_next_run(
    path: Path, faults: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(path) as log:
        log.append(ok("a"))
        faults("write", log, errno.ENOSPC)
        monkeypatch.setattr(os, "ftruncate", lambda *_: os.close(-1))  # an OSError
        with pytest.raises(DiskFull):
            log.append(ok("b"))
        with pytest.raises(DiskFull):
            log.append(ok("c"))
    monkeypatch.undo()
    assert path.read_bytes().startswith(dumps(ok("a")) + b"{")
    with opened(path) as log:
        assert log.done == 1
        assert log.recovered == [f"{path}: the last line was cut, and has been taken off"]
        log.append(ok("b"))
    assert ids(path) == ["a", "b"]


def test_a_broken_disk_is_no_full_one(path: Path, faults: Callable[..., None]) -> None:
    with opened(path) as log:
        faults("write", log, errno.EIO)
        with pytest.raises(CannotRecord) as caught:
            log.append(ok("a"))
        assert not isinstance(caught.value, DiskFull)
        assert caught.value.cause == "Input/output error; the record of a is not in it"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_could_not_be_synced_is_told(
    path: Path, faults: Callable[..., None], number: int
) -> None:
    """As on NFS: the write succeeds, and fsync says that there was no room."""
    log = opened(path)
    log.append(ok("a"))
    faults("fsync", log, number)
    with pytest.raises(CannotRecord) as caught:
        log.close()
    assert isinstance(caught.value, DiskFull) == (number == errno.ENOSPC)
    assert caught.value.cause == f"{os.strerror(number)}; its last lines may not be on disk"
    log.close()
    with opened(path) as log:
        assert log.done == 1


def test_after_a_sync_that_failed_no_record_is_taken(
    path: Path, faults: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "INTERVAL_S", 0.01)
    with opened(path) as log:
        faults("fsync", log, errno.EIO)
        log.append(ok("a"))
        with pytest.raises(CannotRecord) as caught:
            until(lambda: log.append(ok("b")))
    assert caught.value.cause == (
        "Input/output error; the record of b is not in it; its last lines may not be on disk"
    )


def test_a_disk_that_is_full_from_the_start_is_told_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = os.statvfs(path.parent)
    full = os.statvfs_result([*found[:3], 0, 0, *found[5:]])
    monkeypatch.setattr(os, "fstatvfs", lambda descriptor: full)
    with pytest.raises(DiskFull) as caught:
        opened(path)
    assert caught.value.hint == f"df -h {path.parent}"
    assert not path.exists()


def test_a_record_that_comes_when_nothing_can_be_begun(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(path) as log:
        monkeypatch.setattr("mvw_cli.batch.store.log.write_sidecar", no_space)
        with pytest.raises(DiskFull) as caught:
            log.append(ok("a"))
    assert caught.value.cause == "No space left on device; the record of a is not in it"
    assert list(path.parent.iterdir()) == []


# Syncing


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times of fsync calls."""
    times: list[float] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        times.append(time.monotonic())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return times


def test_records_are_synced_in_groups(
    path: Path, syncs: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "INTERVAL_S", 60.0)
    with opened(path) as log:
        log.append(ok("first"))
        time.sleep(0.05)
        syncs.clear()
        for number in range(jsonl.GROUP - 2):
            log.append(ok(f"{number}"))
        time.sleep(0.05)
        assert syncs == []
        log.append(ok("last"))
        until(lambda: syncs)
        assert len(syncs) == 1


def test_a_lone_record_is_synced_soon(
    path: Path, syncs: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "INTERVAL_S", 0.1)
    with opened(path) as log:
        log.append(ok("a"))
        syncs.clear()
        start = time.monotonic()
        until(lambda: syncs)
        assert 0.0 < syncs[0] - start < 2.0
