"""A record: its keys, their order, and that whatever is in it is one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from docs_pages import dotted, rows, section
from records import QUESTION, RUN, completion, digest, failed, image, item, ok, rich

from mvw_cli.adapter import Answer
from mvw_cli.batch.items import ImageRef, item_key
from mvw_cli.batch.store.record import TIMINGS, dumps, failure, success
from mvw_cli.errors import BadImage

DOCUMENTED = rows(section("json.md", "Records of `mvw batch`"))


def test_a_success_holds_all_that_is_known() -> None:
    record = rich()
    assert record["key"] == item_key([digest("one"), digest("two")], QUESTION)
    sizes = {"width_px": 4, "height_px": 3, "original_width_px": 8, "original_height_px": 6}
    assert record["images"] == [
        {"path": "a.png", "sha256": digest("one"), **sizes},
        {"path": "t.parquet", "sha256": digest("two"), **sizes, "row": 7, "column": "image"},
    ]
    texts = ("three", "so", {"SUMMARY": "s"})
    assert (record["answer"], record["reasoning"], record["stages"]) == texts
    assert (record["reference"], record["withdrawal"]["step"]) == ("3", 2)
    assert record["vision"]["attended_per_token"] == 6.5
    assert tuple(record["timings"]) == TIMINGS
    assert (record["timings"]["read_ms"], record["timings"]["ttft_ms"]) == (1.0, 5.0)
    assert record["memory"] == {"kv_bytes_prefill": 3000, "kv_bytes_end": 1600}
    assert (record["remarks"], record["attempts"], record["error"]) == (["outside"], 2, None)


def test_a_failure_after_reading_is_known_by_its_content() -> None:
    assert failed("a", "bytes")["key"] == item_key([digest("bytes")], QUESTION)
    two = replace(item("a"), images=(ImageRef("a"), ImageRef("b")))
    half = failure(two, [image("one")], BadImage("b"), run=RUN, attempts=1, timings={})
    assert half["key"] is None
    assert [one["sha256"] for one in half["images"]] == [digest("one"), None]


@pytest.mark.parametrize(
    ("error", "message"),
    [(KeyError("x"), "'x'"), (ValueError("one\ntwo"), "one"), (RuntimeError(), "")],
)
def test_any_other_error_is_its_type_and_first_line(error: Exception, message: str) -> None:
    record = failure(item("a"), [], error, run=RUN, attempts=1, timings={"read_ms": 3.0})
    told = {"type": type(error).__name__, "message": message, "cause": None, "hint": None}
    assert record["error"] == told
    assert record["timings"]["read_ms"] == 3.0


NASTY = '\n\r\x00\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\t"\\ é 🙂'


def test_whatever_is_written_is_one_line_and_comes_back() -> None:
    record = ok(NASTY, text=NASTY, remarks=[NASTY])
    line = dumps(record)
    assert line.endswith(b"\n")
    assert len(line.splitlines()) == len(line.decode().splitlines()) == 1
    assert json.loads(line) == record


def test_there_is_no_nan_in_json() -> None:
    odd = replace(completion().timings, tokens_per_s=float("nan"), ttft_ms=float("inf"))
    done = replace(completion(), timings=odd)
    more: dict[str, Any] = {"run": RUN, "timings": {}, "remarks": [], "attempts": 1}
    record = success(item("a"), [image("a")], done, Answer("x"), **more)
    timings = json.loads(dumps(record), parse_constant=pytest.fail)["timings"]
    assert (timings["tokens_per_s"], timings["ttft_ms"]) == (None, None)


def test_file_names_that_are_not_utf8() -> None:
    """The path as `mvw infer` shows it; ids that differ go on differing."""
    first, second = (json.loads(dumps(ok(name))) for name in ("a\udcff.png", "a\udcfe.png"))
    assert first["images"][0]["path"] == second["images"][0]["path"] == "a\ufffd.png"
    assert (first["id"], second["id"]) == (r"a\udcff.png", r"a\udcfe.png")


def test_every_key_is_documented_in_order() -> None:
    answered = list(dotted(rich(), whole=("stages",)))
    error = [key for key in dotted(failed("a")) if key.startswith("error.")]
    keys = list(dict.fromkeys(answered))
    keys.insert(keys.index("withdrawal.step"), "withdrawal")
    keys.insert(keys.index("vision.entries_prefill"), "vision")
    assert [key for key, *_ in DOCUMENTED] == [*keys, *error]


def test_what_may_be_null_is_documented() -> None:
    """Of an answered and a failed item: a key that is null has a type that says so, and so on."""
    types = {key: kind for key, kind, _ in DOCUMENTED}
    names = {str: "text", int: "integer", float: "number", dict: "object", type(None): "null"}
    for record in (rich(), failed("a"), failed("b", "bytes"), ok("c")):
        for key, value in values(json.loads(dumps(record))):
            assert names[type(value)] in types[key].split(" or "), key


def values(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; objects that may be null count as values, too."""
    if isinstance(value, list):
        for inner in value:
            yield from values(inner, f"{prefix}[]")
        return
    if not isinstance(value, dict) or prefix in ("withdrawal", "vision", "error", "stages"):
        yield prefix, value
    if isinstance(value, dict) and prefix != "stages":
        for key, inner in value.items():
            yield from values(inner, f"{prefix}.{key}".removeprefix("."))
