"""A full disk, a read-only folder, a file that fails: what was answered is not lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hints import parse_hint
from records import fingerprint, ok

from mvw_cli.batch.store import durable, reserve
from mvw_cli.batch.store.log import DiskFull, RecordLog
from mvw_cli.batch.store.reserve import CannotRecord
from mvw_cli.errors import ExitCode

HELPERS = Path(__file__).parents[2] / "helpers"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def opened(path: Path, **options: Any) -> RecordLog:
    return RecordLog.open(path, fingerprint(), **options)


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_bytes().splitlines()]


def mounted(options: str, folder: Path, code: str, *arguments: str) -> dict[str, Any]:
    """Run code beside a file system mounted for it alone; it prints JSON on its last line."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    script = f'mount {options} && exec "$@"'
    words = ["unshare", "-rm", "sh", "-c", script, "sh", sys.executable, "-c", code]
    done = subprocess.run(
        [*words, str(HELPERS), str(folder), *arguments], capture_output=True, text=True, timeout=60
    )
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


FILL = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from records import fingerprint, ok
from mvw_cli.batch.store.log import DiskFull, RecordLog
path = Path(sys.argv[2], "results.jsonl")
log = RecordLog.open(path, fingerprint())
appended, in_reserve, problems = [], 0, []
for number in range(1000):
    try:
        log.append(ok(f"{number}", text="word " * 2000))
    except DiskFull as error:
        problems.append([error.message, error.cause, error.hint])
        if len(problems) == 2:
            break
        continue
    appended.append(f"{number}")
    in_reserve += log.nearly_full
names = sorted(os.listdir(sys.argv[2]))
log.close()
lines = [json.loads(line)["id"] for line in path.read_bytes().splitlines()]
assert lines == appended, (lines, appended)
with RecordLog.open(path.parent.parent / "other.jsonl", fingerprint()) as other:
    pass
again = None
try:
    RecordLog.open(path, fingerprint())
except DiskFull as error:
    again = [error.message, error.cause, error.hint]
merged = None
if len(sys.argv) > 3:
    import shlex
    Path(sys.argv[2], "ballast").unlink()
    from mvw_cli.__main__ import main
    code = main(shlex.split(problems[-1][2])[1:])
    merged = [code, len(path.read_bytes().splitlines())]
print(json.dumps([appended, in_reserve, problems, names, again, merged]))
"""


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"-t tmpfs -o size=4m none {disk} && head -c 1900000 /dev/zero > {disk}/ballast"
    appended, in_reserve, problems, names, again, merged = mounted(mount, disk, FILL, "merge")
    log = disk / "results.jsonl"
    # A record takes 20 kB: what the reserve held is room for some 50 of them.
    assert in_reserve > 40
    assert len(appended) > in_reserve
    assert names == ["ballast", "results.jsonl", "results.jsonl.run.json"]
    (_, first, hint), (message, second, _) = problems
    assert message == f"Cannot write {log}"
    parse_hint(hint)
    spill = Path(hint.split()[3])
    told = "No space left on device; {} kept in " + f"{spill}, to be merged later"
    kept = [str(len(appended) + extra) for extra in (0, 1)]
    assert ids(spill)[-2:] == kept
    assert set(ids(spill)) - set(kept) <= set(appended)  # those that were not synced yet
    count = len(ids(spill))
    assert second == told.format(f"{count} records are")
    assert first == told.format(f"{count - 1} records are" if count > 2 else "1 record is")
    assert hint == f"mvw merge {log} {spill} -o {log}"
    assert again == [f"Cannot write {log}", "No space left on device", f"df -h {disk}"]
    assert merged == [0, len(appended) + 2]
    spill.unlink()


READ_ONLY = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from records import fingerprint
from mvw_cli.batch.store.log import RecordLog
from mvw_cli.errors import UsageProblem
told = []
for name in ("results.jsonl", "new.jsonl"):
    try:
        RecordLog.open(Path(sys.argv[2], name), fingerprint())
    except UsageProblem as error:
        told.append([error.message, error.cause, error.hint])
print(json.dumps(told))
"""


def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir()
    with opened(folder / "results.jsonl") as log:
        log.append(ok("a"))
    mount = f"--bind {folder} {folder} && mount -o remount,ro,bind {folder}"
    told = mounted(mount, folder, READ_ONLY)
    there, new = folder / "results.jsonl", folder / "new.jsonl"
    assert told == [
        [f"Cannot write {there}", "permission denied", f"chmod u+w {there}"],
        [
            f"Cannot write {new}",
            f"cannot write into {folder}: Read-only file system",
            f"ls -ld {folder}",
        ],
    ]


# Faults at the system call


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let system calls on the log's own descriptor fail, after having done half their work."""

    def install(call: str, log: RecordLog, *numbers: int) -> None:
        real, left = getattr(os, call), list(numbers)

        def fail(descriptor: int, *data: bytes) -> Any:
            if descriptor != log._descriptor or not left:
                return real(descriptor, *data)
            number = left.pop(0)
            if data and number == 0:
                return real(descriptor, data[0][: len(data[0]) // 2])
            if data:
                real(descriptor, data[0][: len(data[0]) // 2])
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, call, fail)

    return install


@pytest.fixture(autouse=True)
def own_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_reserve_is_spent_first(
    path: Path, faults: Callable[..., None], number: int, tmp_path: Path
) -> None:
    with opened(path) as log:
        log.append(ok("a"))
        assert (tmp_path / ".results.jsonl.reserve").stat().st_size == 1024 * 1024
        assert not log.nearly_full
        faults("write", log, number)
        log.append(ok("b"))
        assert log.nearly_full
        assert not (tmp_path / ".results.jsonl.reserve").exists()
        log.append(ok("c"))
        assert ids(path) == ["a", "b", "c"]


def test_a_write_that_stops_half_way_goes_on(path: Path, faults: Callable[..., None]) -> None:
    with opened(path) as log:
        faults("write", log, 0)
        log.append(ok("a"))
        assert ids(path) == ["a"]
        assert not log.nearly_full


def test_what_the_disk_does_not_take_is_kept_elsewhere(
    path: Path, faults: Callable[..., None], own_folder_for_temporary_files: Path
) -> None:
    with opened(path) as log:
        log.append(ok("a"))
        log.flush()
        faults("write", log, errno.ENOSPC, errno.ENOSPC)
        with pytest.raises(DiskFull) as caught:
            log.append(ok("b"))
        assert ids(path) == ["a"]
        with pytest.raises(DiskFull) as again:
            log.append(ok("c"))
        with pytest.raises(DiskFull):
            log.flush()
    (spill,) = own_folder_for_temporary_files.iterdir()
    assert ids(spill) == ["b", "c"]
    assert caught.value.exit_code == ExitCode.FAILURE
    told = "No space left on device; {} kept in " + f"{spill}, to be merged later"
    assert caught.value.cause == told.format("1 record is")
    assert again.value.cause == told.format("2 records are")
    assert again.value.hint == f"mvw merge {path} {spill} -o {path}"
    with opened(path) as log:
        assert log.done == 1


def test_a_broken_disk_is_no_full_one(path: Path, faults: Callable[..., None]) -> None:
    with opened(path) as log:
        faults("write", log, errno.EIO)
        with pytest.raises(CannotRecord) as caught:
            log.append(ok("a"))
        assert not isinstance(caught.value, DiskFull)
        assert not log.nearly_full
        assert str(caught.value.cause).startswith("Input/output error; 1 record is kept in ")


def test_when_no_folder_has_room_the_loss_is_told(
    path: Path, faults: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "make_refuge", lambda: None)
    with opened(path) as log:
        faults("write", log, errno.ENOSPC, errno.ENOSPC)
        with pytest.raises(DiskFull) as caught:
            log.append(ok("a"))
    cause = "No space left on device; 1 record is lost, for no other folder has room"
    assert (caught.value.cause, caught.value.hint) == (cause, f"df -h {path.parent}")


def test_a_refuge_is_a_folder_with_room(own_folder_for_temporary_files: Path) -> None:
    refuge = reserve.make_refuge()
    assert refuge is not None
    assert refuge.parent == own_folder_for_temporary_files
    assert refuge.read_bytes() == b""


def test_space_that_is_missed_on_syncing(path: Path, faults: Callable[..., None]) -> None:
    """As on NFS: the write succeeds, and fsync says that there was no room."""
    with opened(path) as log:
        log.append(ok("a"))
        faults("fsync", log, errno.ENOSPC)
        log.flush()
        assert log.nearly_full
        log.append(ok("b"))
    assert ids(path) == ["a", "b"]


def test_what_could_not_be_synced_is_kept_elsewhere(
    path: Path, faults: Callable[..., None], own_folder_for_temporary_files: Path
) -> None:
    log = opened(path)
    log.append(ok("a"))
    faults("fsync", log, errno.EIO)
    with pytest.raises(CannotRecord):
        log.close()
    (spill,) = own_folder_for_temporary_files.iterdir()
    assert ids(spill) == ["a"]
    log.close()


def test_a_disk_that_is_full_from_the_start_is_told_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lay(self: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(reserve.Reserve, "lay", lay)
    with pytest.raises(DiskFull) as caught:
        opened(path)
    assert caught.value.hint == f"df -h {path.parent}"
    assert not path.exists()


def test_a_record_that_comes_when_nothing_can_be_begun_is_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch, own_folder_for_temporary_files: Path
) -> None:
    def write_sidecar(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with opened(path) as log:
        monkeypatch.setattr("mvw_cli.batch.store.log.write_sidecar", write_sidecar)
        with pytest.raises(DiskFull):
            log.append(ok("a"))
        monkeypatch.undo()
    (spill,) = own_folder_for_temporary_files.iterdir()
    assert ids(spill) == ["a"]


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
    monkeypatch.setattr(durable, "INTERVAL_S", 60.0)
    with opened(path) as log:
        log.append(ok("first"))
        time.sleep(0.05)
        syncs.clear()
        for number in range(durable.GROUP - 2):
            log.append(ok(f"{number}"))
        time.sleep(0.05)
        assert syncs == []
        log.append(ok("last"))
        deadline = time.monotonic() + 5
        while not syncs and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(syncs) == 1


def test_a_lone_record_is_synced_soon(
    path: Path, syncs: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "INTERVAL_S", 0.1)
    with opened(path) as log:
        log.append(ok("a"))
        syncs.clear()
        start = time.monotonic()
        deadline = start + 5
        while not syncs and time.monotonic() < deadline:
            time.sleep(0.01)
        assert 0.0 < syncs[0] - start < 2.0
    assert durable.INTERVAL_S == 0.1
