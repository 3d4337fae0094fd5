"""Images, tables and sources of items for tests."""

from __future__ import annotations

import csv
import io
import json
import random
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mvw_cli.batch.items import Item
from mvw_cli.batch.source.listing import list_items
from mvw_cli.batch.source.paths import Source
from mvw_cli.errors import ExitCode, UsageProblem

QUESTION = "What is in the picture?"


def picture(number: int, size: tuple[int, int] = (8, 6), kind: str = "PNG") -> bytes:
    """An image file's bytes, of one colour that tells its number."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 7)).save(buffer, kind)
    return buffer.getvalue()


def noise(number: int, size: tuple[int, int] = (8, 6)) -> bytes:
    """An image file's bytes, unlike all others; the red of its first pixel is its number."""
    width, height = size
    pixels = bytearray(random.Random(number).randbytes(3 * width * height))
    pixels[0] = number
    buffer = io.BytesIO()
    Image.frombytes("RGB", size, bytes(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def files(folder: Path, count: int, **options: Any) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(picture(number, **options))
    return paths


def hub_table(count: int, first: int = 0, **columns: Sequence[object]) -> pa.Table:
    """A table as `datasets` writes it: images are structs of bytes and path."""
    images = [{"bytes": picture(first + n), "path": f"{first + n}.png"} for n in range(count)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"image": pa.array(images, kind), **columns})


def write_parquet(path: Path, table: pa.Table, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def table_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table of records."""
    if path.suffix == ".parquet":
        found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return found
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def save_to_disk(folder: Path, tables: Sequence[pa.Table], rows_per_batch: int = 3) -> Path:
    """What `Dataset.save_to_disk` leaves: streams of record batches and two JSON files.

    As in datasets 3.x, arrow_dataset.py (`save_to_disk`) and arrow_writer.py (`ArrowWriter`).
    """
    folder.mkdir(parents=True)
    names = [f"data-{n:05}-of-{len(tables):05}.arrow" for n in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with (
            pa.OSFile(str(folder / name), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as to,
        ):
            to.write_table(table, max_chunksize=rows_per_batch)
    (folder / "dataset_info.json").write_text("{}")
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def listed(*paths: object, **options: Any) -> list[Item]:
    """The items of a source."""
    given = {"question": QUESTION, **options}
    return list(list_items(Source(tuple(map(str, paths)), **given)))


def ids(*paths: object, **options: Any) -> list[str]:
    return [item.id for item in listed(*paths, **options)]


def refused(*paths: object, **options: Any) -> UsageProblem:
    """The error of a source: in one line each, with a command that shows more."""
    with pytest.raises(UsageProblem) as caught:
        listed(*paths, **options)
    error = caught.value
    assert error.exit_code == ExitCode.USAGE
    assert error.cause and error.hint
    assert "\n" not in error.message + error.cause + error.hint
    assert shlex.split(error.hint)[0] in ("mvw", "ls", "sed", "pip", "python", "file")
    return error
