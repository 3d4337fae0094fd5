"""What a batch is made of: items, each a question about one or more images.

An item is known by two names. Its `id` is what the user calls it; its key is what it asks: the
images' bytes and the question.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

from mvw_cli.text import holds_image

IMAGE_COLUMNS = ("image", "images", "image_path")
"""Names under which images lie in tables and files of questions; the first that is there counts."""
_URL_SAFE = str.maketrans("-_", "+/")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where the bytes of an image are."""

    path: str
    """File, or an address of fsspec as `s3://bucket/scene.png`; of the table, where in one."""
    row: int | None = None
    """Row of the table that holds the image's bytes."""
    column: str | None = None
    """Its column."""
    place: int | None = None
    """Which one of a list of images it is, from 0; None where the cell is no list."""

    @property
    def cell(self) -> str | None:
        """Its column, with its place in a list."""
        return self.column if self.place is None else f"{self.column}/{self.place}"

    def __str__(self) -> str:
        return self.path if self.row is None else f"{self.path}#{self.cell}/{self.row}"


@dataclass(frozen=True, slots=True)
class Item:
    """One question about one or more images."""

    id: str
    """Unique in its work list, and the same each time the list is made."""
    images: tuple[ImageRef, ...]
    question: str
    reference: str | None = None
    """The right answer, where the user has it: carried into the record, never shown the model."""
    values: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What else stands in its line or row, where the source is read whole."""


def item_key(sha256: Sequence[str], question: str) -> str:
    """Name what an item asks, whatever its images are called.

    Args:
        sha256: of the bytes of each image, in order.
    """
    asked = json.dumps([list(sha256), question], ensure_ascii=True)
    return hashlib.sha256(asked.encode()).hexdigest()[:32]


def shard_of(id: str, shards: int) -> int:
    """Return which of 0 … shards - 1 an item belongs to: the same on every machine."""
    # As records write what is not UTF-8, so that a record tells the shard of its item.
    name = hashlib.sha256(id.encode(errors="backslashreplace"))
    return int.from_bytes(name.digest()) % shards


def as_text(value: object) -> str | None:
    """An id or answer as text: JSON of what is neither text nor null."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def id_of(value: object) -> str | None:
    """An id as text; None where there is none, or where it is an image, which no id is to hold."""
    id = as_text(value)
    return None if id is None or holds_image(id) else id


def embedded_image(text: str) -> bytes:
    """Read an image that a text holds, as a data URL or in base64 of either alphabet.

    Raises:
        ValueError: it is no base64.
    """
    head, comma, data = text.partition(",")
    if comma and not head.rstrip().lower().endswith(";base64"):
        return unquote_to_bytes(data)
    plain = "".join((data if comma else text).split()).translate(_URL_SAFE)
    return b64decode(plain + "=" * (-len(plain) % 4), validate=True)


def is_address(path: str) -> bool:
    """Whether a path is an address of fsspec, as `s3://bucket/scene.png`."""
    return "://" in path
