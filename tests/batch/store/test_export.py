"""The table of a log: its columns, its types, and that it is whole or not there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from docs_pages import rows, section
from making import table_rows
from peak_memory import run_measured
from records import (
    QUESTION,
    RUN,
    answered,
    digest,
    failed,
    image,
    no_space,
    ok,
    rich,
    unchanged,
    write,
)

from mvw_cli.batch.items import ImageRef, Item, item_key
from mvw_cli.batch.store import output as module
from mvw_cli.batch.store.jsonl import DiskFull
from mvw_cli.batch.store.output import COLUMNS, check_table, export
from mvw_cli.batch.store.record import dumps
from mvw_cli.errors import ExitCode, MvwError, UsageProblem

NASTY = '\n\r\x00\x0b\x85\u2028\t",; =1+1 \\ é 🙂 '
both = pytest.mark.parametrize("suffix", [".csv", ".parquet"])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def exported(log: Path, *records: dict[str, Any], to: str = ".parquet") -> list[dict[str, Any]]:
    """The rows of the table of these records."""
    table = log.with_name(f"t{to}")
    export(write(log, *records), table)
    return table_rows(table)


def test_the_columns_of_an_answer(log: Path) -> None:
    where = Item("row 7", (ImageRef("t.parquet", 7, "image"),), QUESTION)
    row, of_table = exported(log, rich(), answered(where, [image("x")], "x"))
    assert list(row) == [column.name for column in COLUMNS]
    assert json.loads(row["images"]) == rich()["images"]
    assert (row["image"], row["image_sha256"], row["image_row"]) == ("a.png", digest("one"), None)
    assert (row["stages"], row["remarks"]) == ('{"SUMMARY": "s"}', '["outside"]')
    assert (row["withdrawal_step"], row["vision_attended_per_token"]) == (2, 6.5)
    assert (row["read_ms"], row["tokens_per_s_after"], row["error_type"]) == (1.0, None, None)
    assert row["key"] == item_key([digest("one"), digest("two")], QUESTION)
    # One image has columns of its own, and no list.
    names = ("image", "image_row", "image_column", "images", "remarks", "stages")
    assert [of_table[name] for name in names] == ["t.parquet", 7, "image", None, None, None]


def test_what_a_failure_does_not_know_is_null(log: Path) -> None:
    (row,) = exported(log, failed("a"))
    assert {name: value for name, value in row.items() if value is not None} == {
        "id": "a",
        "status": "failed",
        "image": "a",
        "question": QUESTION,
        "attempts": 1,
        "error_type": "BadImage",
        "error_message": "There is no image",
        "error_cause": "no such file",
        "error_hint": "ls .",
        "run": RUN,
    }
    # Columns are typed where all is null, and an empty answer is no missing one.
    types = {field.name: str(field.type) for field in pq.read_schema(log.with_name("t.parquet"))}
    kinds = {"text": "string", "json": "string", "int": "int64", "float": "double"}
    assert types == {column.name: kinds[column.kind] for column in COLUMNS}
    rows = exported(log, ok("a", text=""), failed("b"))
    assert [row["answer"] for row in rows] == ["", None]


def test_every_value_of_a_record_is_in_its_row(log: Path) -> None:
    """Values, whatever the columns are called: nothing of a record is left out of the table."""

    def leaves(value: Any) -> list[Any]:
        if isinstance(value, dict | list):
            inner = value.values() if isinstance(value, dict) else value
            return [leaf for one in inner for leaf in leaves(one)]
        return [value]

    records = [rich(), failed("b")]
    for record, row in zip(records, exported(log, *records), strict=True):
        flat = list(row.values())
        for name in ("stages", "remarks", "images"):
            flat += leaves(json.loads(row[name] or "null"))
        del record["schema_version"]
        assert [leaf for leaf in leaves(record) if leaf not in flat and leaf != ""] == []


def test_csv_says_the_same_as_parquet(log: Path) -> None:
    texts = ["-5", "=1+1", "@x", "+3", "- a\n- b", " 7", "a\rb", "'q'", NASTY]
    records = [rich(), failed("b"), ok(NASTY), *(ok(f"{n}", text=t) for n, t in enumerate(texts))]

    def cell(value: Any) -> str:
        return "" if value is None else str(value)

    of_csv = exported(log, *records, to=".csv")
    expected = [
        {name: cell(value) for name, value in row.items()} for row in exported(log, *records)
    ]
    assert of_csv == expected
    assert [row["answer"] for row in of_csv[3:]] == texts


@both
def test_pandas_reads_it(log: Path, suffix: str) -> None:
    import pandas

    table = log.with_name(f"t{suffix}")
    export(write(log, ok("a", text="x\ry"), failed("b")), table)
    frame = pandas.read_csv(table) if suffix == ".csv" else pandas.read_parquet(table)
    assert list(frame.columns) == [column.name for column in COLUMNS]
    assert frame.answer.tolist()[0] == "x\ry"
    assert frame.answer.isna().tolist() == [False, True]
    assert frame.ttft_ms.mean() == 5.0
    assert frame.query("status == 'ok'").prompt_tokens.sum() == 30


@both
def test_each_item_is_there_once_and_an_answer_beats_a_failure(log: Path, suffix: str) -> None:
    pair = Item("pair", (ImageRef("1.png"), ImageRef("2.png")), QUESTION)
    found = exported(
        log,
        failed("a"),
        ok("b", text="first"),
        failed("c"),
        ok("b", text="second"),
        ok("a"),
        failed("a"),
        failed("c", attempts=2),
        ok("copy", "b"),
        ok("c", question="How few?"),
        answered(pair, [image("b"), image("y")]),
        answered(pair, [image("b"), image("z")]),
        to=suffix,
    )
    assert [(row["id"], row["status"]) for row in found] == [
        ("b", "ok"),
        ("c", "failed"),
        ("a", "ok"),
        ("copy", "ok"),
        ("c", "ok"),
        ("pair", "ok"),
        ("pair", "ok"),
    ]
    assert found[0]["answer"] == "first"


@both
def test_a_log_without_records_is_a_table_without_rows(log: Path, suffix: str) -> None:
    assert exported(log, to=suffix) == []
    assert b"image_sha256" in log.with_name(f"t{suffix}").read_bytes()


@both
def test_many_groups_are_one_table(log: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GROUP_ROWS", 3)
    found = exported(log, *(ok(f"{number}") for number in range(10)), to=suffix)
    assert [row["id"] for row in found] == [f"{number}" for number in range(10)]
    if suffix == ".parquet":
        assert pq.ParquetFile(log.with_name("t.parquet")).num_row_groups == 4


def refused(log: Path, table: Path) -> MvwError:
    with unchanged(log.parent), pytest.raises(MvwError) as caught:
        export(log, table)
    return caught.value


@both
def test_a_log_that_is_missing_or_something_else(log: Path, suffix: str) -> None:
    table = log.with_name(f"t{suffix}")
    error = refused(log, table)
    assert (error.message, error.cause) == (f"Cannot read {log}", "No such file or directory")
    log.write_text('{"name": "something else"}\n')
    assert refused(log, table).message == f"{log} is not a log of records"


def test_a_value_of_another_type_is_no_record(log: Path) -> None:
    table = log.with_name("t.parquet")
    table.write_text("what was there")
    log.write_bytes(dumps(ok("a")).replace(b'"prompt_tokens":30', b'"prompt_tokens":"30"'))
    error = refused(log, table)
    assert error.exit_code == ExitCode.USAGE
    assert error.message == f"{log} is not a log of records"
    assert error.cause == 'line 1: prompt_tokens is "30"'
    assert error.hint == f"sed -n 1p {log}"


@both
def test_a_full_disk_leaves_the_table_as_it_was(
    log: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = log.with_name(f"d{suffix}")
    device.symlink_to("/dev/full")  # it takes nothing
    write(log, *(ok(f"{number}", text=os.urandom(40_000).hex()) for number in range(5)))
    with pytest.raises(DiskFull) as caught:
        export(log, device)
    assert caught.value.hint == "df -h /dev"
    device.unlink()

    table = log.with_name(f"t{suffix}")
    table.write_text("what was there")
    monkeypatch.setattr(os, "fsync", no_space)
    error = refused(log, table)
    assert type(error) is DiskFull
    assert error.message == f"Cannot write {table}"
    assert error.cause == f"No space left on device; the records are safe in {log}"
    assert error.hint == f"df -h {log.parent}"


def test_without_pyarrow(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write(log, ok("a"))
    export(log, log.with_name("t.csv"))
    assert len(table_rows(log.with_name("t.csv"))) == 1
    table = log.with_name("t.parquet")
    error = refused(log, table)
    assert error.exit_code == ExitCode.USAGE
    assert error.message == f"Cannot write the table {table}"
    assert error.cause == "that needs the package pyarrow, which is not installed"
    assert error.hint == 'pip install "mvw[parquet]"'
    check_table(log.with_name("t.csv"))
    for place in (table, log.parent / "missing" / "t.csv"):
        with pytest.raises(UsageProblem, match="Cannot write "):
            check_table(place)


MEMORY = """
from records import ok
import pyarrow.parquet
from mvw_cli.batch.store.output import export
from mvw_cli.batch.store.record import dumps
log, table = Path(sys.argv[1], "log.jsonl"), Path(sys.argv[1], "t" + sys.argv[2])
line = dumps(ok("NAME", text="word " * 1000))
with log.open("wb") as file:
    for number in range(int(sys.argv[3])):
        file.write(line.replace(b"NAME", str(number).encode()))
before = peak_kib()
export(log, table)
"""


@both
def test_memory_is_flat(tmp_path: Path, suffix: str) -> None:
    """60 MB of records more, and the process takes no more memory."""
    few, many = (run_measured(MEMORY, tmp_path, suffix, count) for count in (3000, 9000))
    assert (tmp_path / "log.jsonl").stat().st_size > 90e6
    assert many - few < 20 * 1024


def test_the_columns_are_documented() -> None:
    documented = rows(section("json.md", "Tables of `mvw batch`"))
    assert [(name, kind) for name, kind, _ in documented] == [
        (column.name, column.kind) for column in COLUMNS
    ]
    for column, (*_, key) in zip(COLUMNS, documented, strict=True):
        path = ".".join(map(str, column.path)).replace("images.0", "images[0]")
        assert key.partition(";")[0] == f"`{path}`"
