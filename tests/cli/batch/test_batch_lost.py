"""Nothing is lost, whatever stops a batch: real processes, real files.

The measure is always the same: the records of a disturbed run and of what went on with it are
those of an undisturbed one, each item once.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_process import Batch, answers, records
from making import noise

from mvw_cli.errors import ExitCode

ITEMS = 10
LONG = ("--max-new-tokens", "12")


def images(folder: Path) -> None:
    folder.mkdir()
    for number in range(ITEMS):
        (folder / f"{number}.png").write_bytes(noise(number))


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, batch_in: Callable[[Path], Batch]
) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("undisturbed")
    images(folder / "images")
    ran = batch_in(folder)("images", *LONG, "--slots", "4")
    assert ran.code == 0, ran.err
    found = answers(folder / "images.results.jsonl")
    assert len(found) == ITEMS
    assert len({text for _, text, _ in found.values()}) > ITEMS // 2  # pictures matter
    return found


@pytest.fixture
def log(tmp_path: Path) -> Path:
    images(tmp_path / "images")
    return tmp_path / "images.results.jsonl"


def wait_for_records(path: Path, count: int) -> None:
    for _ in range(600):
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {count} records came")


def test_killed_at_any_moment(batch: Batch, log: Path, undisturbed: dict[str, object]) -> None:
    moments = [random.Random(7).randrange(20, 40), 14, 1]
    seen = [0]
    for number, moment in enumerate(moments):
        ran = batch("images", *LONG, "--slots", str(number + 1), kill_at=moment)
        assert ran.code == -signal.SIGKILL
        seen.append(len(records(log)) if log.exists() else 0)
    assert seen == sorted(seen) and 0 < seen[-1] < ITEMS
    assert batch("images", *LONG, "--slots", "3").code == 0
    assert answers(log) == undisturbed
    assert sorted(path.name for path in log.parent.iterdir()) == [
        "images",
        "images.results.jsonl",
        "images.results.jsonl.run.json",
    ]


def test_cut_in_the_middle_of_a_line(
    batch: Batch, log: Path, undisturbed: dict[str, object]
) -> None:
    assert batch("images", *LONG, "--limit", "6").code == 0
    os.truncate(log, log.stat().st_size - 100)
    ran = batch("images", *LONG)
    assert ran.code == 0
    assert answers(log) == undisturbed
    assert "cut" in ran.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_interrupt_finishes_what_is_begun(
    batch: Batch, log: Path, undisturbed: dict[str, object], number: int
) -> None:
    with batch.started("images", *LONG, "--slots", "2", pace_s=0.05) as process:
        wait_for_records(log, 1)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == ExitCode.INTERRUPTED
    assert 2 <= len(records(log)) < ITEMS  # what was decoding next to the first was finished
    assert b"Finishing" in err and re.search(rb"^Go on .*mvw batch images", err, re.M)
    assert batch("images", *LONG, "--slots", "2").code == 0
    assert answers(log) == undisturbed


def test_a_second_interrupt_leaves_at_once(
    batch: Batch, log: Path, undisturbed: dict[str, object]
) -> None:
    with batch.started("images", *LONG, "--slots", "2", pace_s=0.3) as process:
        wait_for_records(log, 1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        assert time.monotonic() - began < 1.5  # far less than an answer takes
    assert process.returncode == ExitCode.INTERRUPTED
    assert len(records(log)) < ITEMS
    assert not list(log.parent.glob(".*"))
    assert batch("images", *LONG).code == 0
    assert answers(log) == undisturbed


def mounted(batch: Batch, script: str, **environment: str) -> str:
    """Run a script that sees file systems of its own; `"$@"` in it is the command."""
    words = batch.words("images", *LONG, "--slots", "2")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", sys.executable, "-m", "mvw_cli", *words],
        cwd=batch.folder,
        env=batch.environment | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip("no mounts here")
    return done.stderr


def told(err: str) -> list[tuple[str, str, str]]:
    """What, why and a hint, of each error."""
    return re.findall(r"^Error: (.*)\n  (.*)\nHint: (.*)$", err, re.M)


FULL = """
set -e
mount -t tmpfs -o size=2m none out
set +e
"$@" -o out/results.jsonl; codes=$?
cp out/results.jsonl half.jsonl
ls -A out > before
"$@" -o out/results.jsonl; codes="$codes $?"
"$@" -o out/other.jsonl; codes="$codes $?"
ls -A out > after
rm out/filler
export FICKLE={}
"$@" -o out/results.jsonl; codes="$codes $?"
echo "codes $codes" >&2
cp out/results.jsonl whole.jsonl
"""


def test_a_full_disk(batch: Batch, log: Path, undisturbed: dict[str, object]) -> None:
    """What was answered is there, what was not is told, and with room again the log goes on."""
    folder = log.parent
    (folder / "out").mkdir()
    err = mounted(batch, FULL, FICKLE='{"fill": "out/filler"}')
    full = ExitCode.FAILURE
    assert f"codes {full} {full} {full} 0" in err, err
    (what, cause, hint), *again = told(err)
    assert (what, hint) == ("Cannot write out/results.jsonl", f"df -h {folder / 'out'}")
    no_space = "No space left on device"
    assert re.fullmatch(rf"{no_space}; the record of \d+\.png is not in it", cause)
    assert again == [(f"Cannot write out/{n}.jsonl", no_space, hint) for n in ("results", "other")]
    assert err.count("loaded") == 2 and "cut" not in err
    assert (folder / "before").read_text() == (folder / "after").read_text()
    assert 0 < len(records(folder / "half.jsonl")) < ITEMS
    assert answers(folder / "whole.jsonl") == undisturbed


READ_ONLY = """
set -e
mount --bind out out
mount -o remount,ro,bind out
set +e
"$@" -o out/old.jsonl; codes=$?
"$@" -o out/new.jsonl; codes="$codes $?"
echo "codes $codes" >&2
"""


def test_a_read_only_folder_is_told_before_the_model_is_loaded(batch: Batch, log: Path) -> None:
    out = log.parent / "out"
    out.mkdir()
    (out / "old.jsonl").touch()
    err = mounted(batch, READ_ONLY)
    assert f"codes {ExitCode.USAGE} {ExitCode.USAGE}" in err and "loaded" not in err
    assert told(err) == [
        ("Cannot write out/old.jsonl", "permission denied", f"chmod u+w {out}/old.jsonl"),
        (
            "Cannot write out/new.jsonl",
            f"cannot write into {out}: Read-only file system",
            f"ls -ld {out}",
        ),
    ]


def test_images_that_disappear_change_or_are_none(
    batch: Batch, log: Path, undisturbed: dict[str, tuple[str, str, str]]
) -> None:
    folder = log.parent / "images"
    os.mkfifo(folder / "10.png")
    (folder / "11.png").write_bytes(noise(1)[:40])
    bad = {"2.png", "10.png", "11.png"}
    ran = batch("images", *LONG, unlink="images/2.png", rewrite=["images/4.png", "images/5.png"])
    assert ran.code == ExitCode.ITEMS_FAILED and "--retry-failed" in ran.err
    found = answers(log)
    assert {id for id, (status, *_) in found.items() if status == "failed"} == bad
    assert {one["error"]["type"] for one in records(log) if one["error"]} == {"BadImage"}
    # The key of the one that has changed, too: it is the content's.
    expected = {**undisturbed, "4.png": undisturbed["5.png"]}
    assert {id: found[id] for id in found.keys() - bad} == {
        id: expected[id] for id in expected.keys() - bad
    }

    again = batch("images", *LONG)  # they have their record
    assert (again.code, "loaded" in again.err) == (ExitCode.ITEMS_FAILED, False)
    for name, number in (("10.png", 3), ("11.png", 3), ("2.png", 2)):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(noise(number))
    assert batch("images", *LONG, "--retry-failed").code == 0
    found = answers(log)
    assert found["2.png"] == undisturbed["2.png"]
    assert found["10.png"][1:] == undisturbed["3.png"][1:]
    assert len(found) == ITEMS + 2


def test_what_can_not_be_encoded_fails_alone(
    batch: Batch, log: Path, undisturbed: dict[str, object]
) -> None:
    (log.parent / "images" / "large.png").write_bytes(noise(1, size=(40, 40)))
    ran = batch("images", *LONG, encode_fails=[3, 7], most_pixels=500)
    assert ran.code == ExitCode.ITEMS_FAILED
    assert "this picture is not to my liking" in ran.err
    failed = {one["id"]: one["error"]["type"] for one in records(log) if one["error"]}
    assert failed == {"3.png": "ValueError", "7.png": "ValueError", "large.png": "OutOfMemory"}
    answered = {id: answer for id, answer in answers(log).items() if id not in failed}
    assert answered == {id: undisturbed[id] for id in undisturbed.keys() - failed}


def test_out_of_memory_takes_fewer_at_a_time(
    batch: Batch, log: Path, undisturbed: dict[str, object]
) -> None:
    ran = batch("images", *LONG, "--slots", "6", most_rows=2)
    assert ran.code == 0, ran.err
    assert answers(log) == undisturbed
    assert "Memory ran out: from here on 2 at a time." in ran.err
    assert sum(record["attempts"] - 1 for record in records(log)) == 1


def test_out_of_memory_takes_smaller_images_where_the_profile_allows_it(
    batch: Batch, log: Path, undisturbed: dict[str, tuple[str, str, str]]
) -> None:
    large = log.parent / "images" / "large.png"
    large.write_bytes(noise(1, size=(40, 40)))
    ran = batch("images", *LONG, "--set", "images.min_pixels=100", most_pixels=600)
    assert ran.code == 0, ran.err
    assert "large.png: memory ran out" in ran.err
    (record,) = (one for one in records(log) if one["id"] == "large.png")
    assert record["attempts"] == 3
    (image,) = record["images"]
    assert image["width_px"] * image["height_px"] <= 600
    assert (image["original_width_px"], image["original_height_px"]) == (40, 40)
    assert len(record["remarks"]) == 2
    assert "large.png was scaled from 40×40 to 28×28 pixels" in record["remarks"][0]
    found = answers(log)
    assert {id: found[id] for id in undisturbed} == undisturbed
