"""The bytes and pixels of an item's images, read from wherever they lie.

Whatever goes wrong is a `BadImage`, so that it is that item's failure alone.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mvw_cli.batch.items import ImageRef, Item, embedded_image, is_address
from mvw_cli.batch.source.paths import join, open_file, suffix
from mvw_cli.batch.source.questions import SUFFIXES, Lines
from mvw_cli.batch.source.table import Cells
from mvw_cli.errors import BadImage, MvwError
from mvw_cli.images.problems import FILE_LIMIT, PIXEL_LIMIT, too_many_bytes
from mvw_cli.images.reading import ImageFile, open_image, read_file, upright_size
from mvw_cli.text import error_line, holds_image

_threads = threading.local()


def read_image(
    image: ImageRef, max_pixels: int | None, max_decoded_pixels: int = PIXEL_LIMIT
) -> ImageFile:
    """Read and decode one image, and scale it down; arguments and errors as of `open_image`."""
    with _failing_alone(image):
        return open_image(
            _bytes(image),
            max_pixels=max_pixels,
            max_decoded_pixels=max_decoded_pixels,
            name=str(image),
        )


def image_size(image: ImageRef, max_pixels: int | None, max_decoded_pixels: int) -> tuple[int, int]:
    """Return how wide and high an image is, upright and not scaled down, without decoding it.

    Raises:
        BadImage: as `read_image`, as far as that can be told without decoding.
    """
    with _failing_alone(image):
        return upright_size(_bytes(image), str(image), max_pixels, max_decoded_pixels)


def hash_images(item: Item) -> list[str]:
    """SHA-256 of the bytes of an item's images, without decoding them; `BadImage` without them."""
    hashes = []
    for image in item.images:
        with _failing_alone(image):
            hashes.append(hashlib.sha256(_bytes(image)).hexdigest())
    return hashes


def too_slow(image: ImageRef, timeout_s: float) -> BadImage:
    """Make the error of an image whose reading was given up."""
    return _unread(image, f"reading it took longer than {timeout_s:g} s")


@contextmanager
def _failing_alone(image: ImageRef) -> Iterator[None]:
    """Make a `BadImage` of every error, with a hint that works for where the image lies."""
    try:
        yield
    except MvwError as error:
        hint = error.hint or ""
        in_file = image.row is None and not is_address(image.path)
        if not in_file and not hint.startswith(("pip ", "mvw infer IMAGE ")):
            hint = _show_hint(image)  # the other is a command on files, and this is none
        raise BadImage(error.message, cause=error.cause, hint=hint) from None
    except FileNotFoundError:
        raise _unread(image, "there is no such file") from None
    except Exception as error:
        raise _unread(image, error_line(error)) from None


def _bytes(image: ImageRef) -> bytes:
    """Fetch the bytes of one image; raises whatever goes wrong."""
    if image.row is not None:
        return _cell(image, image.row)
    if not is_address(image.path):
        return read_file(image.path)
    with open_file(image.path) as file:
        data = file.read(FILE_LIMIT + 1)
    if len(data) > FILE_LIMIT:
        raise too_many_bytes(image.path)
    return data


def _cell(image: ImageRef, row: int) -> bytes:
    """Read the bytes that a cell or a line of questions holds, or a cell points to."""
    # Each thread has its own: one that hangs on a table must not hold up the others.
    if not hasattr(_threads, "cells"):
        _threads.cells, _threads.lines = Cells(), Lines()
    if suffix(image.path) in SUFFIXES:
        held: bytes = _threads.lines.image(image)
        return held
    value = _threads.cells.cell(image.path, row, image.column or "image", image.place)
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and holds_image(value):
        return embedded_image(value)
    if isinstance(value, str) and value:
        return _bytes(ImageRef(join(os.path.dirname(image.path), value)))
    raise _unread(image, "its cell is empty")


def _unread(image: ImageRef, cause: str) -> BadImage:
    return BadImage(f"Cannot read the image {image}", cause=cause, hint=_show_hint(image))


def _show_hint(image: ImageRef) -> str:
    return "mvw batch --help" if is_address(image.path) else f"ls -l {shlex.quote(image.path)}"
