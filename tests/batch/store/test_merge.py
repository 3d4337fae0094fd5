"""Joining logs: what is kept, what is refused, what is missing, and how to go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from docs_pages import dotted, rows, section
from hints import parse_hint
from processes import Ran
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
    write,
)

from mvw_cli.batch.items import shard_of
from mvw_cli.batch.store import merge as module
from mvw_cli.batch.store.fingerprint import Fingerprint, Sidecar, read_sidecar
from mvw_cli.batch.store.jsonl import DiskFull
from mvw_cli.batch.store.log import RecordLog
from mvw_cli.batch.store.merge import merge
from mvw_cli.batch.store.output import export
from mvw_cli.batch.store.record import dumps
from mvw_cli.errors import MvwError, UsageProblem

Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)


def log(
    name: str,
    *records: dict[str, Any],
    shard: tuple[int, int] | None = None,
    listed: int | None = None,
    made_with: Fingerprint | None = None,
) -> str:
    """A log as `mvw batch` leaves it."""
    count = len(records) if listed is None else listed
    shards = {} if shard is None else {shard: count}
    with RecordLog(Path(name), made_with or fingerprint(), shards=shards) as opened:
        for record in records:
            opened.append({**record, "run": opened.run})
    return name


def sidecar_of(log: str) -> Sidecar:
    found = read_sidecar(Path(log))
    assert found is not None
    return found


def refused(*names: str, output: str = "all.jsonl", **options: bool) -> MvwError:
    with unchanged(Path()), pytest.raises(MvwError) as caught:
        merge(names, output, **options)
    if caught.value.hint and caught.value.hint.startswith("mvw "):
        parse_hint(caught.value.hint)
    return caught.value


def odd(number: int) -> str:
    """An item's id, that is not UTF-8."""
    return f"{number}\udcff.png"


def shards(n: int, count: int) -> list[list[str]]:
    """The items of each shard."""
    names = [odd(number) for number in range(count)]
    return [[one for one in names if shard_of(one, n) == i] for i in range(n)]


def divided(n: int, count: int, leave_out: int = 0) -> list[str]:
    """Logs of all shards; the first lacks some records."""
    made = []
    for i, names in enumerate(shards(n, count)):
        done = names[leave_out:] if i == 0 else names
        made.append(log(f"part{i}.jsonl", *map(ok, done), shard=(i, n), listed=len(names)))
    return made


def counts(merged: dict[str, Any]) -> tuple[int, int, int]:
    return merged["answered"], merged["failed"], merged["duplicates"]


def gaps(merged: dict[str, Any]) -> list[tuple[str, int | None, int]]:
    return [(gap["shard"], gap["listed"], gap["found"]) for gap in merged["gaps"]]


def test_shards_become_one_log_that_a_run_goes_on_with() -> None:
    parts = divided(3, 40)
    merged = merge(parts, "all.jsonl")
    assert (counts(merged), gaps(merged), merged["remarks"]) == ((40, 0, 0), [], [])
    assert merged["run"] == RUN
    assert Path("all.jsonl").read_bytes() == b"".join(Path(part).read_bytes() for part in parts)
    lengths = [len(names) for names in shards(3, 40)]
    expected = {(i, 3): length for i, length in enumerate(lengths)}
    assert sidecar_of("all.jsonl") == Sidecar(fingerprint(), expected)
    with RecordLog(Path("all.jsonl"), fingerprint()) as opened:
        assert (opened.done, opened.recovered) == (40, [])
        assert opened.is_done(item(odd(39)), [digest(odd(39))])
        assert not opened.is_done(item(odd(40)), [digest(odd(40))])
        opened.append(ok(odd(40)))
    assert len(ids("all.jsonl")) == 41


def test_each_item_is_kept_once_and_an_answer_beats_a_failure() -> None:
    log("a.jsonl", failed("x"), ok("y", text="first"), failed("z"))
    log("b.jsonl", ok("x"), ok("y", text="second"), failed("z"), ok("copy", "y"))
    merged = merge(["a.jsonl", "b.jsonl"], "all.jsonl")
    assert counts(merged) == (3, 1, 3)
    assert ids("all.jsonl") == ["y", "z", "x", "copy"]
    assert b"second" not in Path("all.jsonl").read_bytes()
    assert [(one["log"], one["answered"], one["failed"]) for one in merged["shards"]] == [
        ("a.jsonl", 1, 2),
        ("b.jsonl", 3, 1),
    ]
    # The order of logs decides between equals alone.
    merge(["b.jsonl", "a.jsonl"], "other.jsonl")
    assert ids("other.jsonl") == ["x", "y", "z", "copy"]
    assert b"second" in Path("other.jsonl").read_bytes()


# Other settings


def test_answers_of_other_settings_are_not_joined() -> None:
    log("a.jsonl", ok("x"))
    log("b.jsonl", ok("y"), made_with=fingerprint(32))
    log("c.jsonl", ok("z"))
    error = refused("a.jsonl", "b.jsonl", "c.jsonl")
    assert isinstance(error, UsageProblem)
    assert error.message == "The logs hold answers of different settings"
    assert error.cause == "withdrawal.m: 16 in a.jsonl, 32 in b.jsonl"
    assert error.hint == "mvw merge a.jsonl c.jsonl -o all.jsonl"


def test_other_settings_are_known_without_the_file_that_spells_them_out() -> None:
    log("a.jsonl", ok("x"))
    other = fingerprint(32).short
    write(Path("b.jsonl"), ok("y", run=other))
    cause = f"run {RUN} in a.jsonl, run {other} in b.jsonl"
    assert refused("a.jsonl", "b.jsonl").cause == cause
    write(Path("c.jsonl"), ok("x"), ok("y", run=other))
    first, second = sorted([RUN, other])
    assert refused("c.jsonl").cause == f"run {first} in c.jsonl, run {second} in c.jsonl"


def test_an_empty_log_has_no_answers_that_could_differ() -> None:
    mine = shard_of("x", 2)
    log("a.jsonl", ok("x"), shard=(mine, 2))
    log("b.jsonl", shard=(1 - mine, 2), made_with=fingerprint(settled=False, revision=None))
    log("c.jsonl", shard=(mine, 2))
    merged = merge(["b.jsonl", "a.jsonl"], "all.jsonl")
    assert (counts(merged), gaps(merged)) == ((1, 0, 0), [])
    assert sidecar_of("all.jsonl").fingerprint == fingerprint()
    merged = merge(["c.jsonl", "b.jsonl"], "none.jsonl")
    assert (counts(merged), merged["run"], gaps(merged)) == ((0, 0, 0), None, [])
    assert Path("none.jsonl").read_bytes() == b""


def test_the_settings_beside_the_result_are_those_of_its_records() -> None:
    log("a.jsonl", ok("x"), made_with=fingerprint(32))
    write(Path("a.jsonl"), ok("x"))  # a file that was copied without what belongs to it
    log("b.jsonl", ok("y"), made_with=fingerprint(settled=False))
    log("c.jsonl", ok("z"))
    merge(["a.jsonl", "b.jsonl", "c.jsonl"], "all.jsonl")
    assert sidecar_of("all.jsonl").fingerprint == fingerprint(settled=True)


def test_no_settings_of_before_stay_beside_the_result() -> None:
    log("all.jsonl", ok("old"), made_with=fingerprint(32))
    write(Path("a.jsonl"), ok("x"))
    merge(["a.jsonl"], "all.jsonl", overwrite=True)
    assert sorted(os.listdir()) == ["a.jsonl", "all.jsonl"]
    with RecordLog(Path("all.jsonl"), fingerprint()) as opened:
        assert opened.done == 1


# What is missing


def test_a_shard_that_is_missing() -> None:
    parts = divided(4, 60)
    merged = merge([parts[0], parts[2]], "all.jsonl")
    assert gaps(merged) == [("1/4", None, 0), ("3/4", None, 0)]
    whole = merge(["all.jsonl", parts[1], parts[3]], "all.jsonl")
    assert (counts(whole), gaps(whole)) == ((60, 0, 0), [])


def test_a_shard_with_fewer_records_than_it_has_items() -> None:
    parts = divided(2, 40, leave_out=3)
    first, second = shards(2, 40)
    assert gaps(merge(parts, "all.jsonl")) == [("0/2", len(first), len(first) - 3)]
    # Records of a shard count wherever they are.
    more = write(Path("more.jsonl"), *map(ok, first[:3]))
    assert gaps(merge([*parts, str(more)], "whole.jsonl")) == []
    # And where the description of a shard is lost, nobody knows how many there should be.
    Path("part1.jsonl.run.json").unlink()
    merged = merge([*parts, str(more)], "all.jsonl", overwrite=True)
    assert gaps(merged) == [("1/2", None, len(second))]


def test_work_that_was_begun_as_a_whole_and_done_in_shards() -> None:
    parts = divided(2, 40)
    log("begun.jsonl", *map(ok, map(odd, range(7))))
    merged = merge(["begun.jsonl", *parts], "all.jsonl")
    assert (gaps(merged), counts(merged)) == ([], (40, 0, 7))
    assert gaps(merge(["begun.jsonl"], "begun.jsonl")) == []


def test_a_shard_run_again_when_the_folder_had_grown() -> None:
    log("old.jsonl", *map(ok, shards(2, 20)[0]), shard=(0, 2))
    log("new.jsonl", *map(ok, shards(2, 40)[0]), shard=(0, 2))
    log("other.jsonl", *map(ok, shards(2, 40)[1]), shard=(1, 2))
    merged = merge(["new.jsonl", "old.jsonl", "other.jsonl"], "all.jsonl")
    assert (gaps(merged), merged["answered"]) == ([], 40)
    assert sum(sidecar_of("all.jsonl").shards.values()) == 40


# Inputs that are damaged, in use, or none


def test_damage_is_left_out_of_the_result_and_stays_in_the_log() -> None:
    log("a.jsonl", ok("x"))
    with open("a.jsonl", "ab") as file:
        file.write(b"\x00\x00rubbish\n" + dumps(ok("y")) + dumps(ok("z"))[:50])
    before = Path("a.jsonl").read_bytes()
    merged = merge(["a.jsonl"], "all.jsonl")
    assert merged["remarks"] == ["a.jsonl: 2 damaged lines left out"]
    assert (Path("a.jsonl").read_bytes(), ids("all.jsonl")) == (before, ["x", "y"])


def test_damage_of_the_log_that_is_replaced_is_put_aside() -> None:
    log("a.jsonl", ok("x"))
    with open("a.jsonl", "ab") as file:
        file.write(b"rubbish\n" + dumps(ok("y")))
    merged = merge(["a.jsonl"], "a.jsonl")
    assert merged["remarks"] == ["a.jsonl: 1 damaged line moved to a.jsonl.damaged"]
    assert ids("a.jsonl") == ["x", "y"]
    assert Path("a.jsonl.damaged").read_bytes() == b"rubbish\n"
    assert Path("a.jsonl").read_bytes() == dumps(ok("x")) + dumps(ok("y"))


def test_a_shard_that_is_still_being_written() -> None:
    with RecordLog(Path("a.jsonl"), fingerprint(), shards={(0, 1): 2}) as opened:
        opened.append(ok("x"))
        with open("a.jsonl", "ab") as file:
            file.write(dumps(ok("y"))[:20])
        merged = merge(["a.jsonl"], "all.jsonl")
        assert gaps(merged) == [("0/1", 2, 1)]
        assert ids("all.jsonl") == ["x"]
        error = refused("all.jsonl", output="a.jsonl", overwrite=True)
        assert error.message == "a.jsonl is being written by another process"


def test_inputs_that_are_no_logs() -> None:
    log("a.jsonl", ok("x"))
    Path("folder").mkdir()
    os.mkfifo("pipe.jsonl")
    Path("questions.jsonl").write_text('{"image": "x.png"}\n')
    error = refused("a.jsonl", "missing.jsonl")
    assert (error.message, error.cause, error.hint) == (
        *("Cannot read missing.jsonl", "No such file or directory", "ls -l ."),
    )
    for name in ("folder", "pipe.jsonl"):
        assert refused(name).cause == "it is no regular file"
    for name in ("a.jsonl.run.json", "questions.jsonl"):
        assert refused("a.jsonl", name).message == f"{name} is not a log of records"


WRONG = {
    b'"prompt_tokens":"30"': 'prompt_tokens is "30"',
    b'"prompt_tokens":true': "prompt_tokens is true",
    b'"prompt_tokens":9223372036854775808': "prompt_tokens is 9223372036854775808",
    b'"prompt_tokens":30.5': "prompt_tokens is 30.5",
}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_record_that_no_table_holds_is_refused_for_all_formats(suffix: str, wrong: bytes) -> None:
    log(f"all{suffix}" if suffix == ".jsonl" else f"all{suffix}.jsonl", ok("old"), failed("x"))
    log("a.jsonl", ok("x"))
    lines = [dumps(ok("y")), b"rubbish\n", dumps(ok("z")).replace(b'"prompt_tokens":30', wrong)]
    Path("b.jsonl").write_bytes(b"".join(lines))
    for options in ({}, {"overwrite": True}):
        error = refused("a.jsonl", "b.jsonl", f"all{suffix}", output=f"all{suffix}", **options)
        assert error.message == "b.jsonl is not a log of records"
        assert error.cause == f"line 3: {WRONG[wrong]}"
        assert error.hint == "sed -n 3p b.jsonl"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_half_a_character_is_refused_and_a_whole_one_is_not(suffix: str) -> None:
    line = dumps(ok("y", text="🙂"))
    for whole in (line.replace("🙂".encode(), rb"\ud83d\ude42"), dumps(ok("z", text=r"\ud83d"))):
        Path("a.jsonl").write_bytes(whole)
        assert merge(["a.jsonl"], f"all{suffix}", overwrite=True)["answered"] == 1
    Path("a.jsonl").write_bytes(line.replace("🙂".encode(), rb"\ud83d"))
    error = refused("a.jsonl", output=f"all{suffix}", overwrite=True)
    assert error.cause == r'line 1: answer is "\ud83d"'


# The output


def test_what_is_there_and_no_input_is_not_replaced() -> None:
    log("a.jsonl", ok("x"))
    log("all.jsonl", ok("precious"))
    Path("questions.csv").write_text("image,question\n")
    for name in ("all.jsonl", "questions.csv"):
        error = refused("a.jsonl", output=name)
        assert isinstance(error, UsageProblem)
        assert error.message == f"{name} exists, and is none of the logs to be joined"
        assert error.hint == f"mvw merge a.jsonl -o {name.replace('.', '-2.')}"
    assert refused("questions.csv", output="new.jsonl").message == "Cannot read questions.csv.jsonl"
    Path("empty.jsonl").touch()
    for name in ("all.jsonl", "empty.jsonl"):
        merge(["a.jsonl"], name, overwrite=name == "all.jsonl")
        assert ids(name) == ["x"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_and_the_log_beside_it(suffix: str) -> None:
    pytest.importorskip("pyarrow")
    parts = divided(2, 20)
    merged = merge(parts, f"all{suffix}")
    assert merged["log"] == f"all{suffix}.jsonl"
    assert len(ids(f"all{suffix}.jsonl")) == 20
    export(Path(merged["log"]), Path(f"again{suffix}"))
    assert Path(f"all{suffix}").read_bytes() == Path(f"again{suffix}").read_bytes()
    # It stands for its log as an input, too.
    log("more.jsonl", ok("more"))
    assert merge([f"all{suffix}", "more.jsonl"], f"all{suffix}")["answered"] == 21


@pytest.mark.parametrize(
    ("output", "message", "cause"),
    [
        ("all.txt", "-o all.txt: records go to a .jsonl, .csv or .parquet file", "ends in .txt"),
        ("all", "-o all: records go to a .jsonl, .csv or .parquet file", "has no such ending"),
        ("no/all.jsonl", "Cannot write no/all.jsonl", "there is no folder"),
        ("pipe.jsonl", "Cannot write pipe.jsonl", "it is no regular file"),
    ],
)
def test_outputs_that_can_not_be(output: str, message: str, cause: str) -> None:
    log("a.jsonl", ok("x"))
    os.mkfifo("pipe.jsonl")
    error = refused("a.jsonl", output=output)
    assert (error.message, type(error)) == (message, UsageProblem)
    assert error.cause is not None and cause in error.cause


def test_a_full_disk_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log("a.jsonl", ok("x"))
    log("b.jsonl", ok("y"))
    log("c.jsonl", failed("x"))
    monkeypatch.setattr(os, "fsync", no_space)
    error = refused("a.jsonl", "b.jsonl", output="all.jsonl")
    assert type(error) is DiskFull
    assert error.message == "Cannot write all.jsonl"
    assert error.cause == "No space left on device; the logs are as they were"
    assert error.hint == f"df -h {Path.cwd()}"
    refused("a.jsonl", "b.jsonl", output="a.jsonl")
    refused("a.jsonl", "c.jsonl", output="c.jsonl")


def test_the_output_may_be_one_of_the_logs() -> None:
    log("a.jsonl", ok("x"), failed("f"))
    log("b.jsonl", ok("y"), ok("x", text="other"))
    before = Path("a.jsonl").read_bytes()
    merged = merge(["b.jsonl", "a.jsonl"], "a.jsonl")
    assert counts(merged) == (2, 1, 1)
    assert Path("a.jsonl").read_bytes() == before + dumps(ok("y"))  # its own records come first
    assert [one["log"] for one in merged["shards"]] == ["b.jsonl", "a.jsonl"]
    write(Path("c.jsonl"), ok("f"), ok("f"))
    assert counts(merge(["a.jsonl", "c.jsonl"], "a.jsonl")) == (3, 0, 2)
    assert ids("a.jsonl") == ["x", "y", "f"]


def test_a_disk_that_is_full_for_the_description_leaves_no_wrong_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log("all.jsonl", ok("old"), made_with=fingerprint(32))
    log("a.jsonl", ok("x"))
    monkeypatch.setattr(module, "write_sidecar", no_space)
    with pytest.raises(DiskFull) as caught:
        merge(["a.jsonl"], "all.jsonl", overwrite=True)
    assert sorted(os.listdir()) == ["a.jsonl", "a.jsonl.run.json", "all.jsonl"]
    assert caught.value.message == "Cannot write all.jsonl.run.json"
    assert caught.value.cause == "No space left on device; the records are safe in all.jsonl"


# The command


def test_the_command_says_what_it_joined(mvw: Run) -> None:
    divided(2, 30)
    ran = mvw("merge", "part0.jsonl", "part1.jsonl", "-o", "all.jsonl")
    one, two = map(len, shards(2, 30))
    assert (ran.code, ran.err) == (0, "")
    assert [line.split() for line in ran.out.splitlines()] == [
        ["LOG", "SHARD", "LISTED", "ANSWERED", "FAILED"],
        ["part0.jsonl", "0/2", str(one), str(one), "0"],
        ["part1.jsonl", "1/2", str(two), str(two), "0"],
        ["all.jsonl:", "30", "answered,", "0", "failed"],
    ]


def test_the_command_ends_with_3_where_records_are_missing(mvw: Run) -> None:
    divided(4, 60, leave_out=2)
    ran = mvw("merge", "part0.jsonl", "part2.jsonl", "part2.jsonl", "-o", "all.jsonl")
    listed = len(shards(4, 60)[0])
    assert (ran.code, ran.err.splitlines()) == (
        3,
        [
            "Error: Records are missing",
            f"  shard 0/4: {listed - 2} of {listed} are there; shard 1/4: there is no log of it; "
            "shard 3/4: there is no log of it",
            "Hint: mvw batch FOLDER QUESTION -o all.jsonl",
        ],
    )
    assert len(ids("all.jsonl")) == len(shards(4, 60)[0]) + len(shards(4, 60)[2]) - 2


def test_the_command_ends_with_3_where_items_failed(mvw: Run) -> None:
    log("a.jsonl", ok("x"), failed("y"))
    ran = mvw("merge", "a.jsonl", "-o", "all.csv")
    assert ran.code == 3
    message, cause, hint = ran.err.splitlines()
    assert (message, cause) == ("Error: 1 item failed", "  their records say why, under `error`")
    assert hint == "Hint: mvw batch FOLDER QUESTION -o all.csv --retry-failed"
    assert "all.csv: 1 answered, 1 failed" in ran.out


def test_the_summary_as_json(mvw: Run) -> None:
    log("a.jsonl", ok("x"), failed("y"), shard=(0, 2), listed=3)
    Path("b.jsonl").write_bytes(b"rubbish\n" + dumps(ok("x")))
    ran = mvw("merge", "a.jsonl", "b.jsonl", "-o", "all.jsonl", "--json")
    assert ran.code == 3
    summary = json.loads(ran.out)
    n = [shard_of(id, 2) for id in "xy"]
    parts = [{"shard": "0/2", "listed": 3}]
    assert summary == {
        "schema_version": 1,
        "output": "all.jsonl",
        "log": "all.jsonl",
        "run": RUN,
        "answered": 1,
        "failed": 1,
        "duplicates": 1,
        "shards": [
            {"log": "a.jsonl", "parts": parts, "answered": 1, "failed": 1},
            {"log": "b.jsonl", "parts": [], "answered": 1, "failed": 0},
        ],
        "gaps": [
            {"shard": "0/2", "listed": 3, "found": n.count(0), "missing": 3 - n.count(0)},
            {"shard": "1/2", "listed": None, "found": n.count(1), "missing": None},
        ],
        "remarks": ["b.jsonl: 1 damaged line left out"],
    }
    keys = dict.fromkeys(key for key in dotted(summary) if key != "shards[].parts")
    documented = rows(section("json.md", "The summary of `mvw merge`"))
    assert list(keys) == [key for key, *_ in documented]


def test_every_key_of_the_file_beside_a_log_is_documented() -> None:
    log("a.jsonl", ok("x"), shard=(0, 2))
    content = json.loads(Path("a.jsonl.run.json").read_text())
    documented = rows(section("json.md", "The file beside a log"))
    found = dict.fromkeys(dotted(content, whole=("fingerprint.profile",)))
    assert list(found) == [key for key, *_ in documented]


def test_remarks_are_warnings_and_quiet_silences_them(mvw: Run) -> None:
    Path("b.jsonl").write_bytes(dumps(ok("x")) + b"rubbish\n")
    ran = mvw("merge", "b.jsonl", "-o", "all.jsonl")
    assert (ran.code, len(ran.warnings)) == (0, 1)
    ran = mvw("merge", "-q", "b.jsonl", "-o", "all.jsonl", "--overwrite")
    assert (ran.code, ran.err) == (0, "")
    assert "all.jsonl: 1 answered, 0 failed" in ran.out


def test_it_needs_none_of_the_heavy_libraries() -> None:
    log("a.jsonl", ok("x"))
    code = (
        "import sys\n"
        "from mvw_cli.__main__ import main\n"
        "assert main(['merge', 'a.jsonl', '-o', 'all.jsonl']) == 0\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    alone = {**os.environ, "MVW_LOAD_PLUGINS": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=alone)
    heavy = {"torch", "transformers", "PIL", "numpy", "pydantic", "rich", "pyarrow"}
    assert done.returncode == 0 and not heavy & {*done.stderr.split()}, done.stderr


def test_a_kill_in_the_middle_leaves_what_was_there(tmp_path: Path) -> None:
    """SIGKILL right before the rename: the output is untouched, and merging again works."""
    log("a.jsonl", ok("x"))
    log("all.jsonl", ok("y"), failed("x"))
    code = (
        "import os, signal\n"
        "from mvw_cli.batch.store.merge import merge\n"
        "os.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)\n"
        "merge(['a.jsonl', 'all.jsonl'], 'all.jsonl')\n"
    )
    with unchanged(Path()):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True)
        assert done.returncode == -9
        for left in Path().glob(".all.jsonl.*"):
            left.unlink()
    assert merge(["a.jsonl", "all.jsonl"], "all.jsonl")["answered"] == 2


def test_a_kill_between_log_and_description_keeps_what_the_log_is_for() -> None:
    """SIGKILL right after the log is replaced: merging again knows of its shard."""
    parts = divided(2, 20)
    code = (
        "import os, signal\n"
        "from mvw_cli.batch.store import fingerprint\n"
        "fingerprint.replacing = lambda *args: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from mvw_cli.batch.store.merge import merge\n"
        f"merge({parts!r}, {parts[0]!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == -9
    assert len(ids(parts[0])) == 20
    assert gaps(merge(parts, parts[0])) == []
    assert len(sidecar_of(parts[0]).shards) == 2
