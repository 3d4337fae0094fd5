"""The log: resuming, recovery, locks, what it refuses, and disks that fail."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from records import (
    RUN,
    digest,
    failed,
    fingerprint,
    ids,
    item,
    no_space,
    ok,
    unchanged,
)
from waiting import until

from mvw_cli.batch.store import jsonl
from mvw_cli.batch.store.fingerprint import Fingerprint
from mvw_cli.batch.store.jsonl import CannotRecord, DiskFull
from mvw_cli.batch.store.log import RecordLog
from mvw_cli.batch.store.record import dumps
from mvw_cli.errors import ExitCode, UsageProblem

HINT = "mvw batch images 'How many?' -o results.jsonl --overwrite"


def opened(path: Path, made_with: Fingerprint | None = None, **options: Any) -> RecordLog:
    return RecordLog(path, made_with or fingerprint(), hint=HINT, **options)


def fill(path: Path, *records: dict[str, Any], **options: Any) -> None:
    """Write records as a batch would, and close."""
    with opened(path, **options) as log:
        for record in records:
            log.append(record)
    log.close()  # a second time


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def refused(path: Path, *args: Any, **options: Any) -> tuple[str, str | None, str | None]:
    with unchanged(path.parent), pytest.raises(UsageProblem) as caught:
        opened(path, *args, **options)
    return caught.value.message, caught.value.cause, caught.value.hint


def test_records_are_whole_lines_at_once(path: Path) -> None:
    with opened(path) as log:
        assert (log.done, log.failed, log.path, log.run) == (0, 0, path, RUN)
        for count, record in enumerate([ok("a"), failed("b"), ok("c")], start=1):
            log.append(record)
            assert path.read_bytes() == path.read_bytes().rstrip(b"\n") + b"\n"
            assert len(ids(path)) == count
        assert (log.done, log.failed) == (2, 1)
        with pytest.raises(ValueError, match="run 000000000000"):
            log.append(ok("d", run="000000000000"))
    assert path.read_bytes() == dumps(ok("a")) + dumps(failed("b")) + dumps(ok("c"))
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.name}.run.json"]
    sidecar = json.loads(path.with_name("results.jsonl.run.json").read_text())
    assert (sidecar["schema_version"], sidecar["run"]) == (1, RUN)
    assert Fingerprint(**sidecar["fingerprint"]) == fingerprint()


def test_failures_count_as_done_until_they_are_retried(path: Path) -> None:
    fill(path, ok("a"), failed("unread"), failed("tried", "cat"))
    with opened(path) as log:
        assert (log.done, log.failed) == (1, 2)
        assert log.has_failed(item("unread"))
        assert log.has_failed(item("tried"))
        assert not log.has_failed(item("tried", "How few?"))
        assert not log.has_failed(item("a"))
    with opened(path, retry_failed=True) as log:
        assert (log.done, log.failed) == (1, 0)
        assert not log.has_failed(item("unread"))
        assert not log.is_done(item("tried"), [digest("cat")])
        # Nothing is thrown away before there is something in its place.
        assert ids(path) == ["a", "unread", "tried"]
        log.append(ok("unread"))
        assert ids(path) == ["a", "unread"]
        log.append(ok("tried", "cat"))
    with opened(path) as log:
        assert (log.done, log.failed, ids(path)) == (3, 0, ["a", "unread", "tried"])
        assert not log.has_failed(item("unread"))


def test_overwriting_replaces_the_log_with_the_first_record(path: Path) -> None:
    fill(path, ok("a"), failed("b"))
    before = path.read_bytes()
    fill(path, retry_failed=True)
    fill(path, overwrite=True)
    assert path.read_bytes() == before  # there is nothing in its place yet
    with opened(path, fingerprint(32), overwrite=True) as log:
        assert (log.done, log.failed) == (0, 0)
        assert not log.is_done(item("a"), [digest("a")])
        log.append(ok("a", run=log.run))
        assert ids(path) == ["a"]
    with opened(path, fingerprint(32)) as log:
        assert log.done == 1
    assert refused(path)[1] == "withdrawal.m: 32 before, 16 now"


def test_a_log_without_records_is_not_left_behind(path: Path) -> None:
    fill(path)
    assert list(path.parent.iterdir()) == []
    path.touch()
    fill(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_other_settings_are_refused_with_the_difference(path: Path) -> None:
    fill(path, ok("a"))
    assert refused(path, fingerprint(32)) == (
        f"{path} holds answers of other settings",
        "withdrawal.m: 16 before, 32 now",
        HINT,
    )
    assert refused(path, fingerprint(revision="decaf"))[1] == "revision: c0ffee before, decaf now"
    other = fingerprint(32).short
    with path.open("ab") as file:  # a record that came from elsewhere
        file.write(dumps(ok("b", run=other)))
    assert refused(path)[1] == f"records of run {other} are in it, this is run {RUN}"


def test_the_revision_is_compared_once_the_model_is_loaded(path: Path) -> None:
    fill(path, ok("a"))
    loading = fingerprint(revision=None, settled=False)
    with opened(path, loading) as log:
        log.settle(loading.with_revision("c0ffee"))
        assert log.run == RUN
        log.append(ok("b"))
    with opened(path, loading) as log, pytest.raises(UsageProblem) as caught:
        log.settle(loading.with_revision("decaf"))
    assert caught.value.cause == "revision: c0ffee before, decaf now"


def test_a_lost_sidecar_leaves_the_hash_to_judge_by(path: Path) -> None:
    fill(path, ok("a"))
    sidecar = path.with_name("results.jsonl.run.json")
    sidecar.unlink()
    fill(path, ok("b"))
    assert sidecar.exists()
    # A run that found nothing to do has loaded no model: it can't tell what answers came from.
    sidecar.unlink()
    fill(path, made_with=fingerprint(revision=None, settled=False))
    assert not sidecar.exists()
    fill(path, ok("c"))
    sidecar.write_text("{")
    other = fingerprint(32)
    what, cause, hint = refused(path, other)
    assert (what, hint) == (f"{path} holds answers of other settings", HINT)
    assert cause == (
        f"records of run {RUN} are in it, this is run {other.short}; the .run.json file that "
        "would tell the difference is missing"
    )
    with opened(path, fingerprint(32, settled=False)) as log, pytest.raises(UsageProblem):
        log.settle(other)


# Recovery


def test_a_tail_cut_at_any_byte_costs_that_record_alone(path: Path) -> None:
    fill(path, ok("a"))
    kept, last = path.read_bytes(), dumps(ok("b", text="é\u2028"))
    for length in range(len(last) + 1):
        path.write_bytes(kept + last[:length])
        with opened(path) as log:
            whole = length == len(last)
            assert log.done == 1 + whole, length
            told = (
                []
                if whole or not length
                else [f"{path}: the last line was cut, and has been taken off"]
            )
            assert log.recovered == told
            assert path.read_bytes() == kept + (last if whole else b"")
    assert not path.with_name("results.jsonl.damaged").exists()


def test_a_first_record_that_was_cut_is_no_foreign_file(path: Path) -> None:
    line = dumps(ok("a"))
    for length in range(1, len(line) - 1, 7):
        path.write_bytes(line[:length])
        with opened(path) as log:
            assert log.done == 0
            assert path.read_bytes() == b""


A, B, C = (dumps(ok(name)) for name in "abc")


@pytest.mark.parametrize(
    ("damaged", "kept", "aside", "count"),
    [
        (A + b"\0" * 5000 + b"\n" + B, A + B, b"\0" * 5000 + b"\n", 1),
        (A + B[:40] + b"\n" + C, A + C, B[:40] + b"\n", 1),
        (A + B[:40] + C + C, A + C, B[:40] + C, 1),
        (A + b"\xff\xfe\n" + B + b"[1, 2]\n" + C, A + B + C, b"\xff\xfe\n[1, 2]\n", 2),
        (A + B.replace(b"three", b"th\0ee") + C, A + C, B.replace(b"three", b"th\0ee"), 1),
        (A + b"[" * 100_000 + b"\n" + B, A + B, b"[" * 100_000 + b"\n", 1),
    ],
)
def test_damage_in_the_middle_is_moved_aside(
    path: Path, damaged: bytes, kept: bytes, aside: bytes, count: int
) -> None:
    fill(path, ok("a"))
    path.write_bytes(damaged)
    path.chmod(0o640)
    with opened(path) as log:
        lines = "1 damaged line" if count == 1 else f"{count} damaged lines"
        assert log.recovered == [f"{path}: {lines} moved to {path}.damaged"]
        assert path.read_bytes() == kept
        assert log.done == len(kept.splitlines())
        log.append(ok("d"))
    assert path.read_bytes() == kept + dumps(ok("d"))
    assert path.with_name("results.jsonl.damaged").read_bytes() == aside
    assert path.stat().st_mode & 0o777 == 0o640
    assert len(list(path.parent.iterdir())) == 3


@pytest.mark.parametrize(
    ("damaged", "kept", "aside", "told"),
    [
        (A + b"junk\n" + B + C[:50], A + B, b"junk\n", 2),
        (A + b"\0" * 4096, A, None, 1),
        (b"\n" + A + b"\r\n  \n", None, None, 0),
    ],
)
def test_damage_at_the_end_is_taken_off_and_blank_lines_are_none(
    path: Path, damaged: bytes, kept: bytes | None, aside: bytes | None, told: int
) -> None:
    fill(path, ok("a"))
    path.write_bytes(damaged)
    left = damaged if kept is None else kept
    with opened(path) as log:
        assert (log.done, len(log.recovered)) == (left.count(b"schema"), told)
        assert path.read_bytes() == left
    found = path.with_name("results.jsonl.damaged")
    assert (found.read_bytes() if found.exists() else None) == aside


# What is not ours


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b'{"id": 1, "prompt": "x"}\n', "line 1 is JSON of something else"),
        (A + b'{"a": 1}\n', "line 2 is JSON of something else"),
        (A + A.replace(b'"ok"', b'"odd"'), "line 2 is JSON of something else"),
        (b"Dear diary,\n", "it holds no record"),
        (b"\x89PNG\r\n\x1a\n", "it holds no record"),
        (b"id,answer\n1,2\n", "it holds no record"),
        (b"\0" * 100, "it holds no record"),
        (b"[1, 2]", "it holds no record"),
        (b'{\n  "schema_version": 1\n}\n', "it holds no record"),
    ],
)
def test_a_file_of_something_else_is_left_alone(path: Path, content: bytes, cause: str) -> None:
    path.write_bytes(content)
    hint = f"head -c 300 {path}"
    assert refused(path) == (f"{path} is not a log of records", cause, hint)


def test_a_log_of_a_newer_mvw_is_left_alone(path: Path) -> None:
    path.write_bytes(A.replace(b'"schema_version":1', b'"schema_version":2'))
    cause = "line 1 has schema_version 2, and this mvw knows 1"
    assert refused(path)[1:] == (cause, "pip install --upgrade mvw")


def test_the_place_must_be_one_for_a_log(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    assert refused(tmp_path / "folder")[1] == "it is a folder"
    assert refused(tmp_path / "none" / "x.jsonl")[1] == f"there is no folder {tmp_path / 'none'}"
    assert refused(tmp_path / "fifo")[1] == "it is no regular file"
    assert "File name too long" in str(refused(tmp_path / ("x" * 300))[1])


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "deep" / "real.jsonl", tmp_path / "link.jsonl"
    real.parent.mkdir()
    link.symlink_to(real)
    fill(link, ok("a"), failed("b"))
    fill(link, ok("b"), retry_failed=True)
    assert link.is_symlink()
    assert ids(real) == ["a", "b"]
    assert (real.parent / "real.jsonl.run.json").exists()


# Other processes

WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from records import fingerprint, ok
from mvw_cli.batch.store.log import RecordLog
log = RecordLog(Path(sys.argv[2]), fingerprint())
start = log.done
print("open", flush=True)
for number in range(start, start + int(sys.argv[3])):
    log.append(ok(f"item {number}", text="word " * 200))
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
sys.stdin.read()
"""


@pytest.fixture
def writer(path: Path) -> Callable[[int], subprocess.Popen[str]]:
    """Start a process that appends records and says so after each."""

    def start(records: int) -> subprocess.Popen[str]:
        arguments = [str(Path(__file__).parents[2] / "helpers"), str(path), str(records)]
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        return process

    return start


def test_one_writer_at_a_time(path: Path, writer: Callable[[int], subprocess.Popen[str]]) -> None:
    with writer(1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        what, cause, hint = refused(path)
        assert what == f"{path} is being written by another process"
        assert cause == "a log has one writer at a time; shards write to files of their own"
        assert hint == f"fuser -v {path}"
        refused(path, overwrite=True)
        assert ids(path) == ["item 0"]  # anyone may read
        process.kill()
    with opened(path) as log:
        assert log.done == 1
        with pytest.raises(UsageProblem):
            opened(path)


def test_the_lock_outlives_a_rewrite(path: Path) -> None:
    fill(path, ok("a"), failed("b"))
    with opened(path, retry_failed=True) as log:
        log.append(ok("b"))
        with pytest.raises(UsageProblem):
            opened(path)
    path.write_bytes(A + b"junk\n")
    with opened(path), pytest.raises(UsageProblem):
        opened(path)


def test_sigkill_loses_nothing_that_was_appended(
    path: Path, writer: Callable[[int], subprocess.Popen[str]]
) -> None:
    told = 0
    for round in range(5):
        with writer(1_000_000) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(0.05 + 0.03 * round)
            process.kill()
            numbers = [int(line) for line in (first + process.stdout.read()).splitlines()]
        told = max(told, numbers[-1] + 1)
        with opened(path) as log:
            assert told <= log.done <= told + 1
            told = log.done
            assert ids(path) == [f"item {number}" for number in range(told)]
    assert told > 20


def test_the_shard_that_a_log_is_for_is_told(path: Path) -> None:
    sidecar = path.with_name("results.jsonl.run.json")
    for items in (10, 11):
        with opened(path, shards={(2, 8): items}) as log:
            log.append(ok(f"{items}"))
        assert json.loads(sidecar.read_text())["parts"] == [{"shard": [2, 8], "listed": items}]
    fill(path, ok("c"))
    assert json.loads(sidecar.read_text())["parts"] == []


# Disks that are full or broken: what was answered is not lost


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_record_that_the_disk_does_not_take(
    path: Path, faults: Callable[..., None], number: int
) -> None:
    with opened(path) as log:
        log.append(ok("a"))
        faults("write", log, number)
        with pytest.raises(CannotRecord) as caught:
            log.append(ok("b"))
        assert path.read_bytes() == dumps(ok("a"))  # half of it had been written
        with pytest.raises(CannotRecord) as again:
            log.append(ok("c"))
        assert (log.done, log.failed) == (1, 0)
        log.flush()
    assert isinstance(caught.value, DiskFull) == (number != errno.EIO)
    assert caught.value.exit_code == ExitCode.FAILURE
    assert caught.value.cause == f"{os.strerror(number)}; the record of b is not in it"
    assert again.value.cause == f"{os.strerror(number)}; the record of c is not in it"
    with opened(path) as log:
        assert (log.done, log.recovered) == (1, [])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_could_not_be_synced_is_told(
    path: Path, faults: Callable[..., None], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS: the write succeeds, and fsync says that there was no room."""
    log = opened(path)
    log.append(ok("a"))
    faults("fsync", log, number)
    with pytest.raises(CannotRecord) as caught:
        log.close()
    assert isinstance(caught.value, DiskFull) == (number == errno.ENOSPC)
    assert caught.value.cause == f"{os.strerror(number)}; its last lines may not be on disk"
    monkeypatch.setattr(jsonl, "INTERVAL_S", 0.01)
    with opened(path) as log:
        assert log.done == 1
        faults("fsync", log, number)
        log.append(ok("b"))
        with pytest.raises(CannotRecord) as caught:
            until(lambda: log.append(ok("c")))
    assert caught.value.cause == f"{os.strerror(number)}; the record of c is not in it"


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


def test_records_are_synced_every_second(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        times.append(time.monotonic())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(jsonl, "INTERVAL_S", 0.1)
    with opened(path) as log:
        log.append(ok("first"))  # which writes the sidecar, too
        times.clear()
        for number in range(100):
            log.append(ok(f"{number}"))
        until(lambda: times)
        assert len(times) == 1
