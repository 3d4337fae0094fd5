"""Where records end up: names, tables, and addresses of fsspec with a copy of everything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hints import parse_hint
from making import table_rows
from records import fingerprint, ids, ok

from mvw_cli.batch.store.log import RecordLog
from mvw_cli.batch.store.output import Output, plan_output
from mvw_cli.errors import MvwError, UsageProblem


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder in a store that is neither file nor network."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield "memory://bucket/runs"
    store.store.clear()


def record(output: Output, *ids: str) -> None:
    with RecordLog(output.log, fingerprint()) as log:
        for id in ids:
            log.append(ok(id))


# --- names ---


S3 = "s3://bucket/runs/a"


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("out/r.v2.JSONL", Output("out/r.v2.JSONL", Path("out/r.v2.JSONL"))),
        ("/tmp/ö.jsonl", Output("/tmp/ö.jsonl", Path("/tmp/ö.jsonl"))),
        (None, Output("default.jsonl", Path("default.jsonl"))),
        ("r.csv", Output("r.csv", Path("r.csv.jsonl"), table=Path("r.csv"))),
        ("o/R.CSV", Output("o/R.CSV", Path("o/R.CSV.jsonl"), table=Path("o/R.CSV"))),
        (f"{S3}.jsonl", Output(f"{S3}.jsonl", Path("a.jsonl"), address=f"{S3}.jsonl")),
        (
            f"{S3}.parquet",
            Output(
                f"{S3}.parquet",
                Path("a.parquet.jsonl"),
                table=Path("a.parquet"),
                address=f"{S3}.parquet",
            ),
        ),
    ],
)
def test_a_table_keeps_its_log_beside_and_an_address_here(name: str | None, output: Output) -> None:
    assert plan_output(name, "default.jsonl") == output


@pytest.mark.parametrize(
    ("name", "proposed"),
    [
        ("results.json", "results.jsonl"),
        ("results", "results.jsonl"),
        ("my results.xlsx", "my results.jsonl"),
        ("s3://bucket/a.txt", "s3://bucket/a.jsonl"),
        ("out.v1/results", "out.v1/results.jsonl"),
        (".jsonl", "default.jsonl"),
        (".", "default.jsonl"),
        ("out/", "out/default.jsonl"),
        ("out/.jsonl", "out/default.jsonl"),
        ("R.TXT", "R.jsonl"),
        ("r.csv/", "r.csv/default.jsonl"),
        ("-", "default.jsonl"),
        ("--x.txt", "--x.jsonl"),
    ],
)
def test_other_endings_are_refused_with_one_that_works(name: str, proposed: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        plan_output(name, "default.jsonl")
    error = caught.value
    assert name in error.message and error.cause and error.hint
    parse_hint(error.hint)
    assert error.hint.endswith(proposed) or error.hint.endswith(f"'{proposed}'")
    plan_output(proposed, "default.jsonl")


# --- what lies where at the end ---


def test_a_table_is_made_of_the_log() -> None:
    output = plan_output("r.csv", "d.jsonl")
    output.publish()
    assert os.listdir(".") == []  # no records, no table
    for added in (["a", "b"], ["c"]):
        record(output, *added)
        output.publish()
        assert [row["id"] for row in table_rows(Path("r.csv"))] == ids("r.csv.jsonl")
    assert ids("r.csv.jsonl") == ["a", "b", "c"]


@pytest.fixture(params=["memory", "file"])
def address(request: pytest.FixtureRequest, memory: str, tmp_path: Path) -> str:
    """A folder at an address that fsspec serves without a network."""
    return memory if request.param == "memory" else f"file://{tmp_path}/there/runs"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_run_goes_on_from_another_folder(
    address: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{address}/r.{ending}"
    first = plan_output(name, "d.jsonl")
    assert first.fetch() is False
    record(first, "a", "b")
    first.publish()
    kept = {"r.jsonl"} if ending == "jsonl" else {f"r.{ending}", f"r.{ending}.jsonl"}
    log = min(kept, key=lambda one: not one.endswith("jsonl"))
    assert {*os.listdir(".")} == {*kept, f"{log}.run.json"}

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    second = plan_output(name, "d.jsonl")
    assert second.fetch() is True
    assert {*os.listdir(".")} == {log, f"{log}.run.json"}
    with RecordLog(second.log, fingerprint()) as opened:
        assert opened.done == 2
    with pytest.raises(UsageProblem, match="other settings"):  # the sidecar came, too
        RecordLog(second.log, fingerprint(m=3))
    record(second, "c")
    second.publish()
    for number, there in enumerate(kept):
        here = tmp_path / f"{number}.{there}"
        with fsspec.open(f"{address}/{there}", "rb") as file:
            here.write_bytes(file.read())
        found = ids(here) if there == log else [row["id"] for row in table_rows(here)]
        assert found == ["a", "b", "c"]


def test_a_log_that_is_here_is_newer_and_one_without_its_sidecar_is_fetched(memory: str) -> None:
    output = plan_output(f"{memory}/r.jsonl", "d.jsonl")
    record(output, "a")
    output.publish()
    record(output, "b")  # and then the machine went down
    assert output.fetch() is False
    assert ids("r.jsonl") == ["a", "b"]
    os.unlink("r.jsonl")
    os.unlink("r.jsonl.run.json")
    fsspec.filesystem("memory").rm("/bucket/runs/r.jsonl.run.json")
    assert output.fetch() is True
    assert os.listdir(".") == ["r.jsonl"]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_store_that_fails_keeps_the_log_and_names_it(
    memory: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = plan_output(f"{memory}/r.{ending}", "d.jsonl")
    record(output, "a")

    class AccessDenied(Exception):
        """As of a store's own library."""

    def refuse(*args: object, **more: object) -> None:
        raise AccessDenied("AccessDenied:\nno PutObject for you")

    monkeypatch.setattr(MemoryFileSystem, "put_file", refuse)
    with pytest.raises(MvwError) as caught:
        output.publish()
    error = caught.value
    log = "r.jsonl" if ending == "jsonl" else "r.csv.jsonl"
    assert error.message == f"Cannot write {memory}/{log}"
    assert error.cause == f"AccessDenied: no PutObject for you; {log} holds it on this machine"
    assert error.hint == f"ls -l {log}"
    assert ids(log) == ["a"]
    assert ending == "jsonl" or Path("r.csv").exists()


def test_a_protocol_that_nobody_speaks() -> None:
    with pytest.raises(UsageProblem) as caught:
        plan_output("nonsense://bucket/r.jsonl", "d.jsonl").fetch()
    assert caught.value.message == "Cannot read nonsense://bucket/r.jsonl"
    assert os.listdir(".") == []
