"""Logs, their settings and reports that come back damaged: `mvw batch`, `merge`, `compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fuzzing import altered, damaged, fuzz, nested, run, snapshot, told
from hypothesis import example, given
from hypothesis import strategies as st
from records import failed, fingerprint, item, ok, rich
from sample_report import bare, layerwise, report

from mvw_cli.batch.store.fingerprint import Sidecar, sidecar_path, write_sidecar
from mvw_cli.batch.store.log import RecordLog
from mvw_cli.bench.documents import to_json
from mvw_cli.calibrate.store import SampleStore

RECORDS = [ok("a"), failed("b"), rich() | {"id": "c"}, ok("ä\n"), failed("a")]


def _lines(records: list[Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in records)


@st.composite
def logs(draw: st.DrawFn) -> bytes:
    """A log, in which a record or some bytes are not what they were."""
    records = draw(st.lists(st.sampled_from(RECORDS), max_size=4))
    if records and draw(st.booleans()):
        place = draw(st.integers(0, len(records) - 1))
        records[place] = draw(altered(records[place]))
    data = _lines(records)
    return draw(damaged(data)) if draw(st.booleans()) else data


SIDECAR: dict[str, Any] = {
    "schema_version": 1,
    "run": fingerprint().short,
    "fingerprint": fingerprint().to_dict(),
    "parts": [{"shard": [0, 2], "listed": 3}, {"shard": [1, 2], "listed": 2}],
}


@st.composite
def sidecars(draw: st.DrawFn) -> bytes | None:
    """What lies beside a log, if anything does."""
    kind = draw(st.sampled_from(("none", "whole", "altered", "damaged")))
    if kind == "none":
        return None
    whole = draw(altered(SIDECAR)) if kind == "altered" else SIDECAR
    data = json.dumps(whole).encode()
    return draw(damaged(data)) if kind == "damaged" else data


def _with(**changes: Any) -> bytes:
    return json.dumps(SIDECAR | changes).encode()


def put(log: Path, data: bytes, beside: bytes | None) -> list[Path]:
    """Write a log and what lies beside it; return what there is."""
    log.write_bytes(data)
    sidecar_path(log).unlink(missing_ok=True)
    if beside is None:
        return [log]
    sidecar_path(log).write_bytes(beside)
    return [log, sidecar_path(log)]


@fuzz(50)
@given(data=logs(), beside=sidecars(), retry=st.booleans())
@example(data=_lines([RECORDS[0]]), beside=b"[" * 5000, retry=False)
@example(
    data=_lines([RECORDS[0]]),
    beside=_with(fingerprint=SIDECAR["fingerprint"] | {"profile": 3}),
    retry=False,
)
def test_a_log_is_gone_on_with_or_refused(
    data: bytes, beside: bytes | None, retry: bool, tmp_path: Path
) -> None:
    log = tmp_path / "r.jsonl"
    (tmp_path / "r.jsonl.damaged").unlink(missing_ok=True)
    put(log, data, beside)

    def go_on() -> None:
        with RecordLog(log, fingerprint(), retry_failed=retry) as opened:
            opened.is_done(item("a"), ["0" * 64])
            opened.append(ok("new"))

    told(go_on)
    # No whole line is lost, but for failures that are tried again.
    aside = tmp_path / "r.jsonl.damaged"
    kept = log.read_bytes() + (aside.read_bytes() if aside.exists() else b"")
    for line in data.splitlines(keepends=True):
        if line.endswith(b"\n") and line.strip() and b'"failed"' not in line:
            assert line in kept


@fuzz(40)
@given(
    one=st.tuples(logs(), sidecars()),
    other=st.tuples(logs(), sidecars()),
    output=st.sampled_from(("all.jsonl", "all.csv", "all.parquet")),
)
@example(
    one=(_lines(RECORDS), _with(parts=[{"shard": [0, 10**12], "listed": 3}])),
    other=(b"", None),
    output="all.jsonl",
)
@example(
    one=(_lines(RECORDS), _with(parts=[{"shard": [0, 2], "listed": "x"}])),
    other=(b"", None),
    output="all.jsonl",
)
@example(
    one=(_lines([RECORDS[0] | {"prompt_tokens": 10**30}]), None),
    other=(b"", None),
    output="all.parquet",
)
def test_logs_are_joined_or_refused(
    one: tuple[bytes, bytes | None], other: tuple[bytes, bytes | None], output: str, tmp_path: Path
) -> None:
    there = put(tmp_path / "1.jsonl", *one) + put(tmp_path / "2.jsonl", *other)
    before = snapshot(*there)
    run("merge", *(str(tmp_path / name) for name in ("1.jsonl", "2.jsonl")), "--overwrite",
        "-o", str(tmp_path / output))  # fmt: skip
    assert snapshot(*there) == before


@fuzz(30)
@given(data=logs())
@example(data=b'{"run": 1}\n')
@example(data=json.dumps({"run": "x", "key": nested(900)}).encode() + b"\n")
@example(data=b"[" * 5000 + b"\n")
def test_a_log_of_samples_is_gone_on_with_or_refused(data: bytes, tmp_path: Path) -> None:
    log = tmp_path / "samples.jsonl"
    log.write_bytes(data)

    def go_on() -> None:
        with SampleStore(log, {"settings": 1}) as store:
            assert store.get("a") is None

    told(go_on)


REPORTS = [json.loads(to_json(one)) for one in (report(batches=(1,)), bare(), layerwise())]


@st.composite
def reports(draw: st.DrawFn) -> bytes:
    whole = draw(st.sampled_from(REPORTS))
    if draw(st.booleans()):
        return json.dumps(draw(altered(whole, 1))).encode()
    data = json.dumps(whole).encode()
    return draw(damaged(data, 1))


@fuzz(12)
@given(data=reports(), which=st.integers(0, 1), how=st.sampled_from(("", "-v", "--json", "--html")))
@example(data=b"[" * 5000, which=0, how="")
def test_a_report_is_shown_and_compared_or_refused(
    data: bytes, which: int, how: str, tmp_path: Path
) -> None:
    one, other = tmp_path / "1.json", tmp_path / "2.json"
    one.write_bytes(data)
    more = ["--html", str(tmp_path / "page.html")] if how == "--html" else [how] if how else []
    other.write_text(json.dumps(REPORTS[which]))
    run("profile", "--from", str(one), *more)
    run("compare", str(one), str(other), *more)
    assert snapshot(one) == [data]


def test_the_examples_are_whole(tmp_path: Path) -> None:
    """What is damaged above is accepted where it is not."""
    log = tmp_path / "1.jsonl"
    log.write_bytes(_lines(RECORDS[:1]))
    write_sidecar(log, Sidecar(fingerprint(), {(0, 2): 3, (1, 2): 2}))
    assert json.loads(sidecar_path(log).read_bytes()) == SIDECAR
    assert run("merge", str(log), "-o", str(tmp_path / "2.parquet")).code == 3  # of gaps
    for whole in REPORTS:
        log.write_text(json.dumps(whole))
        assert run("profile", "--from", str(log), "-v").code == 0
        assert run("compare", str(log), str(log), "-v").code == 0
