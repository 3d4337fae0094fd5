"""Files of questions and tables, whatever is in them: items, or three lines on what is wrong."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import JUNK, damaged, fuzz, nested, run, snapshot, told
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from records import RUN

from mvw_cli.batch.source.listing import list_items
from mvw_cli.batch.source.paths import Source
from mvw_cli.batch.source.reading import image_size, read_image
from mvw_cli.batch.store.record import dumps, failure
from mvw_cli.batch.store.worklist import WorkList
from mvw_cli.errors import BadImage
from mvw_cli.images.problems import PIXEL_LIMIT

NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small images under names of all kinds."""
    made = tmp_path_factory.mktemp("fuzz")
    for name in ("a.png", "two words.png", "line\nbreak.png", NOT_UTF8):
        Image.new("RGB", (6, 4), "red").save(made / name)
    (made / "folder.png").mkdir()
    return made


def _png() -> bytes:
    held = io.BytesIO()
    Image.effect_noise((24, 24), 90).save(held, "PNG")
    return held.getvalue()


PNG = base64.b64encode(_png()).decode()
IMAGES: tuple[Any, ...] = (
    *("a.png", "a.png", "a.png", "two words.png", "line\nbreak.png", NOT_UTF8, "gone.png"),
    *("../a.png", "/dev/null", "/proc/self/mem", "folder.png", ".", "~nobody/a.png", "a.png/b.png"),
    *("file://a.png", "weird://x.png", "s3://bucket/a.png", "memory://a.png", "zip://a::b.zip"),
    *(f"data:image/png;base64,{PNG}", f"data:image/png;base64,{PNG[:-7]}", "data:,x", "data:"),
    *(PNG, PNG[:90] + "\n" + PNG[90:], "iVBOR" + "A" * 100, "AAAAIGZ0eXBoZWlj" + "A" * 9000),
    *(["a.png"], ["a.png", "gone.png"], [PNG, "a.png"], [None], {"bytes": None, "path": "a.png"}),
)
QUESTIONS = ("How many?", "<image>\nHow many?", "<|im_end|>", "œ" * 300, "q;u,e\ts\nt", '"', "'")
KEYS = ("image", "images", "image_path", "question", "id", "index", "answer", "Image", "", " note")


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of questions, most of which have what they need."""
    made = []
    for number in range(draw(st.integers(0, 4))):
        row: dict[str, Any] = {
            draw(st.sampled_from(("image", "image", "image", "images"))): draw(
                st.sampled_from(IMAGES)
            ),
            "question": draw(st.sampled_from(QUESTIONS)),
        }
        if draw(st.booleans()):
            row["id"] = draw(st.sampled_from((number, str(number), "same", "i" * 3000, "a\0b")))
        for _ in range(draw(st.integers(0, 2))):
            row[draw(st.sampled_from(KEYS))] = draw(st.sampled_from(JUNK))
        made.append(row)
    return made


def as_jsonl(found: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in found).encode()


def as_json(found: list[dict[str, Any]]) -> bytes:
    return json.dumps(found, indent=1).encode()


def as_csv(found: list[dict[str, Any]], separator: str) -> bytes:
    held = io.StringIO()
    writer = csv.writer(held, delimiter=separator)
    names = list(dict.fromkeys(key for row in found for key in row)) or ["image", "question"]
    writer.writerow(names)
    writer.writerows([row.get(name, "") for name in names] for row in found)
    return held.getvalue().encode(errors="surrogatepass")


FORMS = {
    "q.jsonl": as_jsonl,
    "q.json": as_json,
    "q.csv": lambda found: as_csv(found, ","),
    "semicolons.csv": lambda found: as_csv(found, ";"),
    "q.tsv": lambda found: as_csv(found, "\t"),
}
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1")


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Return the name and the bytes of a file of questions."""
    name = draw(st.sampled_from(sorted(FORMS)))
    data = FORMS[name](draw(rows()))
    encoding = draw(st.sampled_from(ENCODINGS))
    if encoding != "utf-8":
        data = data.decode(errors="replace").encode(encoding, errors="replace")
    return name, draw(damaged(data)) if draw(st.booleans()) else data


def use(source: Source) -> None:
    """List, read and record the items of a source, as a batch would."""
    listed, error = told(lambda: WorkList(list_items(source)))
    if error is not None:
        return
    for item in listed:
        read, error = told(lambda item=item: [read_image(one, 100) for one in item.images])
        told(lambda item=item: [image_size(one, 100, PIXEL_LIMIT) for one in item.images])
        if error is not None:
            assert isinstance(error, BadImage)
        wrong = error or BadImage("some other error", cause="of the model", hint="ls")
        line = dumps(failure(item, read or [], wrong, run=RUN, attempts=1, timings={}))
        assert json.loads(line.decode())["status"] == "failed"
        assert PNG[:60] not in json.loads(line)["id"]


@fuzz(60)
@given(made=files())
@example(made=("q.jsonl", as_jsonl([{"image": "\ud800.png", "question": "How many?"}])))
@example(made=("q.jsonl", as_jsonl([{"image": "a.png", "question": "?", "id": nested(700)}])))
@example(made=("q.jsonl", as_jsonl([{"image": "a.png", "question": "?", "answer": nested(700)}])))
@example(made=("q.jsonl", as_jsonl([{"image": "AAAA" * 3000, "question": "How many?"}])))
def test_a_file_of_questions_is_read_or_refused(made: tuple[str, bytes], folder: Path) -> None:
    name, data = made
    file = folder / name
    file.write_bytes(data)
    use(Source((str(folder),), questions=str(file)))
    assert snapshot(file) == [data]


@fuzz(10)
@given(made=files(), question=st.sampled_from((None, "How many?")))
def test_the_command_ends_as_is_foreseen(
    made: tuple[str, bytes], question: str | None, folder: Path, tmp_path: Path
) -> None:
    name, data = made
    file, log = folder / name, tmp_path / "r.jsonl"
    file.write_bytes(data)
    asked = [] if question is None else [question]
    log.unlink(missing_ok=True)
    common = ("--questions", str(file), "--max-new-tokens", "2", "-o", str(log))
    planned = run("batch", str(folder), *asked, *common, "--dry-run", "--json")
    ran = run("batch", str(folder), *asked, *common, "-q")
    assert (planned.code == 0) == (ran.code in (0, 3)), (planned, ran)
    assert snapshot(file) == [data]


# -- tables ----------------------------------------------------------------------------------------

_COLUMNS: dict[str, tuple[pa.DataType, tuple[Any, ...]]] = {
    "text": (pa.string(), ("a.png", "How many?", "", None, "gone.png", "w" * 5000, PNG, "a\0b")),
    "large": (pa.large_string(), ("a.png", None)),
    "bytes": (pa.binary(), (_png(), _png()[:40], b"", None, b"\xff\xfe", b"a.png")),
    "whole": (pa.int64(), (0, -1, None, 2**62)),
    "real": (pa.float64(), (0.5, float("nan"), None)),
    "truth": (pa.bool_(), (True, False, None)),
    "moment": (pa.timestamp("ns"), (0, 2**62)),
    "list": (pa.list_(pa.string()), (["a.png"], ["a.png", "gone.png"], [], None, [None])),
    "struct": (
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ({"bytes": _png(), "path": None}, {"bytes": None, "path": "a.png"}, {}, None),
    ),
    "other": (pa.struct([("path", pa.int64())]), ({"path": 3}, None)),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), ("a.png", "How many?", None)),
    "nothing": (pa.null(), (None,)),
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, bytes]:
    """Return the name and the bytes of a table, most of which have images."""
    usual = {"image": ("struct", "bytes", "text"), "question": ("text", "text", "dictionary")}
    length, arrays, names = draw(st.integers(0, 3)), [], []
    for name in ("image", "question", *draw(st.lists(st.sampled_from(("id", "answer"))))):
        kinds = usual.get(name, ("whole", "text"))
        kind = draw(st.sampled_from(draw(st.sampled_from((kinds, kinds, sorted(_COLUMNS))))))
        type_, values = _COLUMNS[kind]
        cells = [draw(st.sampled_from(values)) for _ in range(length)]
        arrays.append(pa.array(cells, type_))
        names.append(name)
    made, held = pa.table(arrays, names), io.BytesIO()
    name = draw(st.sampled_from(("t.parquet", "t.parquet", "t.arrow")))
    if name == "t.parquet":
        pq.write_table(made, held)
    else:
        with pa.ipc.new_stream(held, made.schema) as stream:
            stream.write_table(made)
    data = held.getvalue()
    return name, draw(damaged(data)) if draw(st.booleans()) else data


@fuzz(40)
@given(made=tables(), question=st.sampled_from((None, "How many?")))
def test_a_table_is_read_or_refused(
    made: tuple[str, bytes], question: str | None, folder: Path
) -> None:
    name, data = made
    file = folder / name
    file.write_bytes(data)
    use(Source((str(file),), question=question))
    assert snapshot(file) == [data]
