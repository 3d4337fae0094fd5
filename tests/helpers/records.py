"""Items, images and records made up for the tests of the log."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from mvw_cli.adapter import Answer
from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.store.fingerprint import Fingerprint
from mvw_cli.batch.store.record import dumps, failure, success
from mvw_cli.engine.types import Completion, Timings, VisionStats, Withdrawal
from mvw_cli.errors import BadImage
from mvw_cli.images.reading import ImageFile

QUESTION = "How many?"


def fingerprint(m: int = 16, **facts: Any) -> Fingerprint:
    """Settings that differ in m."""
    profile = {"adapter": "hf", "model": "org/name", "withdrawal.m": m}
    given = {"revision": "c0ffee", "random_weights": False, "settled": True, **facts}
    return Fingerprint("0.1.0", profile, "mvw 0.1.0", "mvw 0.1.0", **given)


RUN = fingerprint().short


def digest(content: str | bytes) -> str:
    data = content if isinstance(content, bytes) else content.encode(errors="surrogateescape")
    return hashlib.sha256(data).hexdigest()


def item(id: str, question: str = QUESTION, *, path: str | None = None) -> Item:
    return Item(id, (ImageRef(path or id),), question)


def image(content: str | bytes, path: str = "picture.png") -> ImageFile:
    """An image whose file would have this content."""
    return ImageFile(Image.new("RGB", (4, 3)), path, digest(content), (4, 3), (8, 6))


def completion(text: str = "three") -> Completion:
    return Completion(
        text=text,
        token_ids=(1, 2, 3),
        finish_reason="eos",
        prompt_tokens=30,
        vision_tokens=20,
        generated_tokens=3,
        withdrawal=Withdrawal(2, 20, 80, 4000, 1500),
        vision=VisionStats(80, 6.5, 1, 0, 0),
        timings=Timings(5.0, 7.0, 100.0, 90.0, None, 0.5),
        kv_bytes_prefill=3000,
        kv_bytes_end=1600,
        kv_allocated_bytes_end=4096,
    )


def answered(
    item: Item, images: Sequence[ImageFile], text: str = "three", **more: Any
) -> dict[str, Any]:
    given = {"run": RUN, "timings": {}, "remarks": [], "attempts": 1, **more}
    return success(item, images, completion(text), Answer(text), **given)


def rich() -> dict[str, Any]:
    """An answer about two images, one of them in a table, that has all there can be."""
    return success(
        Item("a", (ImageRef("a.png"), ImageRef("t.parquet", 7, "image")), QUESTION, "3"),
        [image("one"), image("two")],
        completion(),
        Answer("three", "so", {"SUMMARY": "s"}),
        run=RUN,
        timings={"latency_ms": 15.0, "read_ms": 1.0, "preprocess_ms": 2.0},
        remarks=["outside"],
        attempts=2,
    )


def ok(id: str, content: str | None = None, *, text: str = "three", **more: Any) -> dict[str, Any]:
    """An answered item; without a content, the image's is its id."""
    asked = item(id, more.pop("question", QUESTION))
    return answered(asked, [image(id if content is None else content)], text, **more)


def failed(id: str, content: str | None = None, **more: Any) -> dict[str, Any]:
    """A failed item; without a content, its image could not be read."""
    return failure(
        item(id, more.pop("question", QUESTION)),
        [] if content is None else [image(content)],
        BadImage("There is no image", cause="no such file", hint="ls ."),
        **{"run": RUN, "timings": {}, "attempts": 1, **more},
    )


def write(path: Path, *records: dict[str, Any]) -> Path:
    """A log as it lies on disk, without what tells its settings."""
    path.write_bytes(b"".join(map(dumps, records)))
    return path


def ids(path: Path | str) -> list[str]:
    """The ids in a log, each line of which has to be whole."""
    return [json.loads(line)["id"] for line in Path(path).read_bytes().splitlines()]


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """See that nothing happens to the files of a folder."""

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = contents()
    yield
    assert contents() == before


def no_space(*given: object) -> None:
    """Take the place of a system call on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
