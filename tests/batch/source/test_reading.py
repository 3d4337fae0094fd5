"""Images of items, out of files, tables and addresses; and the items that tables hold."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pytest
from making import (
    QUESTION,
    files,
    hub_table,
    ids,
    listed,
    picture,
    refused,
    save_to_disk,
    write_parquet,
)
from peak_memory import run_measured
from records import digest as sha256

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.source import table
from mvw_cli.batch.source.reading import hash_images, read_image
from mvw_cli.batch.source.table import Cells
from mvw_cli.errors import BadImage, ExitCode, MvwError
from mvw_cli.images.reading import ImageFile


def read_images(item: Item, max_pixels: int | None) -> list[ImageFile]:
    return [read_image(image, max_pixels) for image in item.images]


def one(*images: ImageRef | Path | str) -> Item:
    refs = tuple(im if isinstance(im, ImageRef) else ImageRef(str(im)) for im in images)
    return Item("one", refs, QUESTION)


def unreadable(item: Item) -> BadImage:
    """Fails to be read, and to be hashed unless its bytes can be had."""
    with pytest.raises(BadImage) as caught:
        read_images(item, None)
    error = caught.value
    assert error.exit_code == ExitCode.BAD_IMAGE
    assert error.cause and error.hint
    assert "\n" not in error.message + error.cause + error.hint
    shlex.split(error.hint)
    return error


# --- files ---


def test_files_are_read_and_hashed(tmp_path: Path) -> None:
    paths = files(tmp_path, 2, size=(40, 20))
    item = one(*paths)
    first, second = read_images(item, 200)
    assert first.size == (20, 10) and first.original_size == (40, 20)
    assert second.image.getpixel((0, 0)) == (1, 0, 7)
    assert second.path == str(paths[1])
    hashes = [sha256(path.read_bytes()) for path in paths]
    assert hash_images(item) == hashes == [first.sha256, second.sha256]


def test_what_cannot_be_read_is_a_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("no image")
    causes = {
        "unlike.anything": "no such file",
        "pipe.png": "it is a pipe or a device, not a file",
        "text.png": "neither PNG",
    }
    for name, cause in causes.items():
        error = unreadable(one(tmp_path / name))
        assert error.cause is not None and error.cause.startswith(cause), name
    for name in ("unlike.anything", "pipe.png"):
        with pytest.raises(BadImage):
            hash_images(one(tmp_path / name))

    def fail(path: str) -> bytes:
        raise MemoryError

    monkeypatch.setattr("mvw_cli.batch.source.reading.read_file", fail)
    assert unreadable(one(*files(tmp_path, 1))).cause == "MemoryError"


# --- tables: their items ---


def test_a_table_lists_its_rows(tmp_path: Path) -> None:
    columns = {
        "question": ["One?", None, "Three?"],
        "id": pa.array([7, None, 9], pa.int64()),
        "answer": pa.array([True, None, False]),
    }
    path = write_parquet(tmp_path / "t.parquet", hub_table(3, **columns))
    refs = [ImageRef(str(path), row, "image") for row in range(3)]
    assert listed(path) == [
        Item("7", (refs[0],), "One?", "true"),
        Item("t.parquet#1", (refs[1],), QUESTION, None),
        Item("9", (refs[2],), "Three?", "false"),
    ]
    error = refused(path, question=None)
    assert error.message == f"Row 1 of {path} has no question"


def test_a_column_of_paths(tmp_path: Path) -> None:
    files(tmp_path / "images", 2)
    paths = ["images/1.png", "/absolute.png", "s3://bucket/x.png", None]
    path = write_parquet(tmp_path / "t.parquet", pa.table({"image": paths}))
    items = listed(path)
    assert [str(item.images[0]) for item in items] == [
        f"{tmp_path}/images/1.png",
        "/absolute.png",
        "s3://bucket/x.png",
        f"{path}#image/3",
    ]
    assert hash_images(items[0]) == [sha256(picture(1))]
    assert unreadable(items[3]).cause == "its cell is empty"


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""Of an image, as `datasets` has it."""


def list_tables() -> dict[str, pa.Table]:
    """Rows of two images, of one, of none, and of null: all the ways to write that."""
    counts = (2, 1, 0, None)

    def rows(make: Callable[[int], object]) -> list[list[object] | None]:
        return [None if n is None else [make(number) for number in range(n)] for n in counts]

    def struct(number: int) -> dict[str, object]:
        return {"bytes": picture(number), "path": None}

    def url(number: int) -> str:
        return f"data:image/png;base64,{b64encode(picture(number)).decode()}"

    def table(values: object, kind: pa.DataType) -> pa.Table:
        return pa.table({"images": pa.array(values, kind), "question": ["What?"] * len(counts)})

    frame = pd.DataFrame({"images": rows(struct), "question": "What?"})
    return {
        "paths": table(rows(lambda n: f"images/{n}.png"), pa.list_(pa.string())),
        "data URLs": table(rows(url), pa.large_list(pa.string())),
        "bytes": table(rows(picture), pa.list_(pa.binary())),
        "large": table(rows(picture), pa.large_list(pa.large_binary())),
        "structs": table(rows(struct), pa.list_(STRUCT)),
        "pandas": pa.Table.from_pandas(frame),
        "path in struct": table(
            rows(lambda n: {"bytes": None, "path": f"images/{n}.png"}), pa.list_(STRUCT)
        ),
    }


@pytest.mark.parametrize("way", list_tables())
@pytest.mark.parametrize("written", ["parquet", "row groups", "arrow"])
def test_lists_of_images(tmp_path: Path, way: str, written: str) -> None:
    files(tmp_path / "images", 2)
    rows = list_tables()[way]
    path = tmp_path / "t.parquet"
    if written == "arrow":
        path = tmp_path / "t.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as to:
            to.write_table(rows, max_chunksize=2)
    else:
        write_parquet(path, rows, row_group_size=1 if written == "row groups" else None)
    two, one, empty, null = listed(path)
    assert (two.id, two.question, null.id) == (f"{path.name}#0", "What?", f"{path.name}#3")
    assert hash_images(two) == [sha256(picture(0)), sha256(picture(1))]
    assert hash_images(one) == [sha256(picture(0))]
    assert [image.image.getpixel((0, 0)) for image in read_images(two, None)] == [
        (0, 0, 7),
        (1, 0, 7),
    ]
    for item in (empty, null):
        assert unreadable(item).cause == "its cell is empty"
    if way != "paths":
        assert [str(image) for image in two.images] == [
            f"{path}#images/0/0",
            f"{path}#images/1/0",
        ]


def test_lists_of_one_length_and_a_null_among_them(tmp_path: Path) -> None:
    kind = pa.list_(pa.binary(), 2)
    pairs = pa.array([[picture(0), picture(1)], [picture(2), None]], kind)
    path = write_parquet(tmp_path / "t.parquet", pa.table({"photos": pairs}))
    both, half = listed(path, image_column="photos")
    assert hash_images(both) == [sha256(picture(0)), sha256(picture(1))]
    assert unreadable(half).message.endswith("#photos/1/1")


def test_lists_are_counted_by_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of a dataset are read once, when they are asked about."""
    path = write_parquet(tmp_path / "t.parquet", list_tables()["structs"])
    asked: list[list[str]] = []
    batches = table.Table.batches

    def noted(self: table.Table, columns: list[str], *rest: int, **more: int) -> Any:
        asked.append([*columns])
        return batches(self, columns, *rest, **more)

    monkeypatch.setattr(table.Table, "batches", noted)
    assert len(listed(path)[0].images) == 2
    assert sorted(asked[0]) == ["images.list.element.path", "question"]


def test_images_as_text_in_a_table(tmp_path: Path) -> None:
    """Base64 of any alphabet and data URLs; no name of an item or image holds them."""
    text = b64encode(picture(0, (60, 50))).decode()
    urls = [text, text.translate(str.maketrans("+/", "-_")).rstrip("="), f"DATA:;BASE64,{text}"]
    columns = {"image": urls, "id": [urls[2], "mine", None]}
    path = write_parquet(tmp_path / "t.parquet", pa.table(columns))
    items = listed(path)
    assert [item.id for item in items] == ["t.parquet#0", "mine", "t.parquet#2"]
    assert [str(item.images[0]) for item in items] == [f"{path}#image/{row}" for row in range(3)]
    for item in items:
        assert hash_images(item) == [sha256(picture(0, (60, 50)))]


def test_a_table_without_images_names_the_likely_column(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", pa.table({"n": [1], "photo": [picture(0)]}))
    error = refused(path)
    assert error.message == f"There is no column image in {path}"
    assert error.cause == "its columns are: n, photo"
    assert error.hint == f"mvw batch {path} '{QUESTION}' --image-column photo"
    error = refused(path, image_column="n")
    assert error.cause == "it holds int64, not bytes, paths, both, or lists of these"
    for kind in ("image", "question", "id", "answer"):
        error = refused(path, **{"image_column": "photo", f"{kind}_column": "nothing"})
        assert error.message == f"There is no column nothing in {path}"


def test_what_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("no table at all")
    (tmp_path / "t.arrow").write_text("no table at all")
    assert "Parquet magic bytes" in str(refused(tmp_path / "t.parquet").cause)
    assert refused(tmp_path / "t.arrow").message == f"Cannot read the table {tmp_path}/t.arrow"


def test_a_folder_as_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    for number, part in enumerate(("test-0", "train-0", "train-1")):
        write_parquet(tmp_path / "data" / f"{part}.parquet", hub_table(2, 2 * number))
    items = listed(tmp_path)
    assert [item.id for item in items] == [
        *("data/test-0.parquet#0", "data/test-0.parquet#1"),
        *("data/train-0.parquet#0", "data/train-0.parquet#1"),
        *("data/train-1.parquet#0", "data/train-1.parquet#1"),
    ]
    assert [hash_images(item) for item in items] == [[sha256(picture(n))] for n in range(6)]
    assert len(listed(tmp_path, include=("data/train-*",))) == 4
    assert "leave out all of its 3" in str(refused(tmp_path, include=("no",)).cause)


def test_a_folder_with_images_is_one_of_images(tmp_path: Path) -> None:
    files(tmp_path, 1)
    write_parquet(tmp_path / "metadata.parquet", pa.table({"file_name": ["0.png"]}))
    assert ids(tmp_path) == ["0.png"]
    below = tmp_path / "below"
    below.mkdir()
    os.rename(tmp_path / "0.png", below / "x.png")
    os.rename(tmp_path / "metadata.parquet", below / "a.parquet")
    assert ids(tmp_path, recursive=True) == ["below/x.png"]


@pytest.mark.parametrize("splits", [(), ("test", "train")])
def test_a_folder_saved_by_datasets(tmp_path: Path, splits: tuple[str, ...]) -> None:
    tables = [hub_table(4, 0, id=[*"abcd"]), hub_table(4, 4, id=[*"efgh"])]
    root = tmp_path / "saved"
    for split, part in zip(splits, tables, strict=False):
        save_to_disk(root / split, [part])
    if not splits:
        save_to_disk(root, tables)
        (root / "cache-0123.arrow").write_text("what map() has left")
    items = listed(root)
    assert [item.id for item in items] == [*"abcdefgh"]
    assert [hash_images(item) for item in items] == [[sha256(picture(n))] for n in range(8)]


def test_without_pyarrow_the_way_to_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "t.parquet", hub_table(1))
    item = listed(path)[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert refused(path).hint == 'pip install "mvw[parquet]"'
    with ThreadPoolExecutor(1) as pool:  # this thread has the table open
        assert pool.submit(unreadable, item).result().hint == 'pip install "mvw[parquet]"'


def test_pyarrow_and_fsspec_stay_away_without_a_table(tmp_path: Path) -> None:
    files(tmp_path, 1)
    code = """
import sys
from mvw_cli.batch.source.reading import read_image
from mvw_cli.batch.source.listing import list_items
from mvw_cli.batch.source.paths import Source
for item in list_items(Source((sys.argv[1],), "?")):
    read_image(item.images[0], None)
print(sorted({"pyarrow", "fsspec", "torch"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# --- tables: their cells ---


@pytest.fixture(params=["parquet", "stream", "file"])
def numbers(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A table whose column x counts its 100 rows, in parts of 7 or 30."""
    content = pa.table({"y": ["-"] * 100, "x": [str(n).encode() for n in range(100)]})
    if request.param == "parquet":
        return write_parquet(tmp_path / "t.parquet", content, row_group_size=30)
    make = pa.ipc.new_stream if request.param == "stream" else pa.ipc.new_file
    path = tmp_path / "t.arrow"
    with pa.OSFile(str(path), "wb") as file, make(file, content.schema) as to:
        to.write_table(content, max_chunksize=7)
    return path


@pytest.mark.parametrize("rows_at_once", [1, 20, 1000])
def test_cells_in_any_order(
    numbers: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr(table, "_IMAGES", rows_at_once)
    rows = [*range(100), *random.Random(0).sample(range(100), 50), 99, 99, 0]
    reader = Cells()
    assert [reader.cell(str(numbers), row, "x") for row in rows] == [b"%d" % row for row in rows]
    assert reader.cell(str(numbers), 3, "y") == "-"
    with pytest.raises(MvwError):
        reader.cell(str(numbers), 100, "x")
    with pytest.raises(MvwError):
        reader.cell(str(numbers), 0, "z")
    assert reader.cell(str(numbers), 5, "x") == b"5"


def test_a_run_over_all_rows_reads_each_batch_once(
    numbers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    batches = table.Table.batches

    def counted(
        self: table.Table, *given: object, **options: object
    ) -> Iterator[tuple[int, object]]:
        for first, batch in batches(self, *given, **options):  # type: ignore[arg-type]
            seen.append(first)
            yield first, batch

    monkeypatch.setattr(table.Table, "batches", counted)
    reader = Cells()
    for row in range(0, 100, 3):
        reader.cell(str(numbers), row, "x")
    assert seen == sorted(set(seen)) and len(seen) in (7, 15)


def test_few_files_stay_open(tmp_path: Path) -> None:
    paths = [write_parquet(tmp_path / f"{n}.parquet", hub_table(1)) for n in range(20)]
    before = len(os.listdir("/proc/self/fd"))
    reader = Cells()
    for path in paths:
        reader.cell(str(path), 0, "image")
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_large_row_group_is_not_held_at_once(tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(1 << 20)
    content = pa.table({"image": [noise[n:] + noise[:n] for n in range(80)]})  # 80 MiB
    path = write_parquet(tmp_path / "t.parquet", content, row_group_size=80, compression="none")
    code = """
from mvw_cli.batch.source.table import Cells
reader = Cells()
reader.cell(sys.argv[1], 0, "image")
before = peak_kib()
assert all(len(reader.cell(sys.argv[1], row, "image")) == 1 << 20 for row in range(80))
"""
    assert run_measured(code, path) < 40 << 10, "KiB beyond the first batch"


def test_images_of_a_table_in_several_threads(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", hub_table(60), row_group_size=13)
    with ThreadPoolExecutor(3) as pool:
        found = pool.map(lambda item: read_images(item, None)[0].sha256, listed(path))
    assert list(found) == [sha256(picture(n)) for n in range(60)]


def test_rows_that_cannot_be_read(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (tmp_path / "here.png").write_bytes(picture(5))
    rows = [
        {"bytes": None, "path": "here.png"},
        {"bytes": picture(0)[:-30], "path": None},
        {"bytes": None, "path": None},
        None,
        {"bytes": None, "path": "gone.png"},
        {"bytes": b"no image", "path": "here.png"},
    ]
    path = write_parquet(tmp_path / "t.parquet", pa.table({"image": pa.array(rows, kind)}))
    items = listed(path)
    assert hash_images(items[0]) == [sha256(picture(5))]
    errors = [unreadable(item) for item in items[1:]]
    assert errors[0].message == f"The file {path}#image/1 is cut short or damaged"
    assert [error.cause for error in errors[1:3]] == ["its cell is empty"] * 2
    assert errors[3].message == f"There is no image {tmp_path}/gone.png"
    assert str(errors[4].cause).startswith("neither PNG")


def test_a_table_that_changes_after_listing(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", hub_table(9))
    items = listed(path)
    write_parquet(path, hub_table(2))
    assert unreadable(items[5]).cause == "there is no row 5; the table has changed"
    write_parquet(path, pa.table({"picture": [1]}))
    elsewhere = ImageRef(f"{tmp_path}/./t.parquet", 0, "image")
    assert unreadable(one(elsewhere)).cause == "there is no column image; the table has changed"
    path.unlink()
    assert unreadable(one(ImageRef(f"{tmp_path}/././t.parquet", 0, "image"))).cause


# --- addresses ---


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder in fsspec's own memory: the code that s3:// takes, without s3."""
    memory = fsspec.filesystem("memory")
    address = f"memory://{time.time_ns()}"
    yield address
    memory.rm(address, recursive=True)


def put(address: str, data: bytes) -> None:
    with fsspec.open(address, "wb") as file:
        file.write(data)


def test_a_remote_folder(bucket: str) -> None:
    for number, name in enumerate(("10.png", "9.png", "b/1.png", ".h.png", "x.txt")):
        put(f"{bucket}/{name}", picture(number))
    items = listed(bucket, recursive=True)
    assert [item.id for item in items] == ["9.png", "10.png", "b/1.png"]
    assert items[0].images == (ImageRef(f"{bucket}/9.png"),)
    assert hash_images(items[0]) == [sha256(picture(1))]
    assert [image.path for image in read_images(items[2], None)] == [f"{bucket}/b/1.png"]
    assert ids(f"{bucket}/") == ["9.png", "10.png"]
    assert ids(f"{bucket}/9.png") == [f"{bucket}/9.png"]
    assert refused(f"{bucket}/nothing").message == f"There is no {bucket}/nothing"
    assert "There is no image in" in refused(bucket, include=("*.jpg",)).message


def test_remote_tables_and_questions(bucket: str, tmp_path: Path) -> None:
    local = write_parquet(tmp_path / "t.parquet", hub_table(5))
    put(f"{bucket}/data/t.parquet", local.read_bytes())
    put(f"{bucket}/q.jsonl", b'{"image": "images/a.png", "question": "?"}\n')
    items = listed(bucket)
    assert [item.id for item in items] == [f"data/t.parquet#{n}" for n in range(5)]
    assert hash_images(items[4]) == [sha256(picture(4))]
    [item] = listed(questions=f"{bucket}/q.jsonl")
    assert item.images == (ImageRef(f"{bucket}/images/a.png"),)
    assert unreadable(item).cause == "there is no such file"
    error = refused(questions=f"{bucket}/r.jsonl")
    assert error.message == f"Cannot read the questions in {bucket}/r.jsonl"


def test_a_protocol_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for error in (unreadable(one("s3://bucket/x.png")), refused("s3://bucket/folder")):
        assert error.message.startswith("Cannot read s3://bucket/")
        assert error.cause == "s3:// needs the package s3fs, which is not installed"
        assert error.hint == "pip install s3fs"
    assert unreadable(one("nosuch://x.png")).cause == "Protocol not known: nosuch"
