"""The images of an item, read from wherever they lie.

Whatever goes wrong is a `BadImage`, so that it is that item's failure alone. Pixels are
`engine/images.py`'s affair; this module fetches bytes.
"""

from __future__ import annotations

import hashlib
import shlex
import threading
from typing import TYPE_CHECKING, Any

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.source.cells import Cells
from mvw_cli.batch.source.folder import suffix
from mvw_cli.batch.source.remote import is_address, open_address, said
from mvw_cli.errors import BadImage, MvwError

if TYPE_CHECKING:
    from mvw_cli.images.reading import ImageFile

_local = threading.local()


def read_images(item: Item, max_pixels: int | None) -> list[ImageFile]:
    """Read and decode an item's images, in order.

    Args:
        max_pixels: larger images are scaled down to at most that many.

    Raises:
        BadImage: one is missing, unreadable, no image, damaged, or above the pixel limit.
    """
    return [read_image(image, max_pixels) for image in item.images]


def read_image(image: ImageRef, max_pixels: int | None) -> ImageFile:
    """Read and decode one image, as `read_images` does."""
    from mvw_cli.images.reading import open_image

    try:
        return open_image(_bytes(image), max_pixels=max_pixels, name=str(image))
    except BadImage as error:
        raise _from_elsewhere(image, error) from None
    except Exception as error:
        raise _unread(image, said(error)) from None


def image_size(image: ImageRef) -> tuple[int, int]:
    """Say how wide and high an image is, upright, without decoding it.

    Raises:
        BadImage: as `read_images`, as far as that can be told without decoding.
    """
    from mvw_cli.images.reading import upright_size

    try:
        return upright_size(_bytes(image), str(image))
    except BadImage as error:
        raise _from_elsewhere(image, error) from None
    except Exception as error:
        raise _unread(image, said(error)) from None


def hash_images(item: Item) -> list[str]:
    """SHA-256 of the bytes of an item's images, without decoding them.

    Raises:
        BadImage: one is missing or unreadable.
    """
    return [_hash(image) for image in item.images]


def too_slow(image: ImageRef, timeout_s: float) -> BadImage:
    """Say that reading an image was given up."""
    return _unread(image, f"reading it took longer than {timeout_s:g} s")


def _hash(image: ImageRef) -> str:
    try:
        return hashlib.sha256(_bytes(image)).hexdigest()
    except BadImage as error:
        raise _from_elsewhere(image, error) from None
    except Exception as error:
        raise _unread(image, said(error)) from None


def _bytes(image: ImageRef) -> bytes:
    """Fetch the bytes of one image; raises whatever goes wrong."""
    if image.row is not None:
        return _cell(image.path, image.row, image.column or "image")
    if not is_address(image.path):
        from mvw_cli.images.reading import read_file

        return read_file(image.path)
    from mvw_cli.images.problems import FILE_LIMIT, too_many_bytes

    try:
        with open_address(image.path) as file:
            data = file.read(FILE_LIMIT + 1)
    except MvwError as error:
        raise BadImage(error.message, cause=error.cause, hint=error.hint) from None
    except FileNotFoundError:
        raise _unread(image, "there is no such file") from None
    if len(data) > FILE_LIMIT:
        raise too_many_bytes(image.path)
    return data


def _cell(path: str, row: int, column: str) -> bytes:
    """Read the bytes that a cell holds or points to."""
    where = ImageRef(path, row, column)
    try:
        value = _cells().cell(path, row, column)
    except ImportError:
        from mvw_cli.batch.source.table_rows import no_pyarrow

        error = no_pyarrow(path)
        raise BadImage(error.message, cause=error.cause, hint=error.hint) from None
    except MvwError as error:
        raise BadImage(error.message, cause=error.cause, hint=error.hint) from None
    except (IndexError, KeyError) as error:
        raise _unread(where, f"{error.args[0]}; the table has changed") from None
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        from mvw_cli.batch.source.table_rows import below_table

        return _bytes(ImageRef(below_table(path, value)))
    raise _unread(where, "its cell is empty")


def _cells() -> Cells:
    """The thread's own: one that hangs on a table must not hold up the others."""
    cells: Any = getattr(_local, "cells", None)
    if cells is None:
        cells = _local.cells = Cells()
    return cells  # type: ignore[no-any-return]


def _unread(image: ImageRef, cause: str) -> BadImage:
    return BadImage(f"Cannot read the image {image}", cause=cause, hint=_look(image))


def _from_elsewhere(image: ImageRef, error: BadImage) -> BadImage:
    """Give a hint that works for what is no file: commands on files would not."""
    if image.row is None and not is_address(image.path):
        return error
    if error.hint and error.hint.startswith("pip "):
        return error
    return BadImage(error.message, cause=error.cause, hint=_look(image))


def _look(image: ImageRef) -> str:
    """A command that shows what is there."""
    if image.row is not None:
        if suffix(image.path) != ".parquet" or is_address(image.path):
            return "mvw batch --help"
        code = (
            "import pyarrow.dataset as d; "
            f"print(d.dataset({image.path!r}).take([{image.row}], columns=[{image.column!r}]))"
        )
    elif is_address(image.path):
        code = f"import fsspec; print(fsspec.open({image.path!r}).open().read(64))"
    else:
        return f"ls -l {shlex.quote(image.path)}"
    return f"python -c {shlex.quote(code)}"
