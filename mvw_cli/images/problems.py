"""The errors of image files, each with its cause and a command to type next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from glob import escape, glob
from importlib.util import find_spec
from itertools import chain, count

from mvw_cli.adapter import ModelSpec
from mvw_cli.errors import BadImage
from mvw_cli.files import free_name
from mvw_cli.text import closest

GENERAL_QUESTION = "What is in the picture?"
"""Asked in hints that are about an image, where the user's own question is not known."""
EXAMPLE_IMAGE = "scene.png"

PIXEL_LIMIT = ModelSpec().max_decoded_pixels
"""Images that would decode to more are refused, unless the profile says another number."""
PIXELS_PER_BYTE = 1000
"""Beyond the limit, a header with fewer bytes behind it is taken for forged: a PNG of one colour
has a byte for so many pixels. A JPEG has two, or libjpeg makes grey of the rest."""

FILE_LIMIT = 1 << 30
"""Bytes of a file. No sensible encoding of PIXEL_LIMIT pixels needs more."""

_FORMATS = "PNG, JPEG, WebP, GIF, TIFF, BMP, PPM, AVIF, HEIF nor JPEG 2000"
_HEIF = b"heic heix heim heis hevc hevx hevm hevs mif1 mif2 msf1".split()
"""Major brands of HEIF files (ISO/IEC 23008-12)."""


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF


_KNOWN: tuple[tuple[Callable[[bytes], bool], str, str], ...] = (
    (
        lambda data: _is_heif(data) and find_spec("pillow_heif") is None,
        "it is a HEIF photo, which needs the package pillow-heif",
        'pip install "mvw[heif]"',
    ),
    (
        lambda data: (
            (data[4:8] == b"ftyp" and not _is_heif(data) and data[8:11] != b"avi")
            or data.startswith((b"\x1aE\xdf\xa3", b"\0\0\1\xba"))
        ),
        "it is a video, and mvw reads pictures",
        "ffmpeg -i {name} -frames:v 1 {free}.png",
    ),
    (
        lambda data: data.startswith(b"%PDF"),
        "it is a PDF document, and mvw reads pictures",
        "pdftoppm -png -r 150 {name} {free}",
    ),
    (
        lambda data: b"<svg" in data[:2000],
        "it is an SVG drawing, and mvw reads pictures",
        "rsvg-convert -w 1024 -o {free}.png {name}",
    ),
    (
        lambda data: data.startswith(b"version https://git-lfs"),
        "it is a pointer of Git LFS, and the picture has not been fetched",
        "git lfs pull",
    ),
)
"""What people take for images: how it is told, the cause, and the command that helps."""


def unopened(path: str, error: OSError | ValueError) -> BadImage:
    """Explain why a path could not be opened or read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
        return _missing(path)
    hint = f"ls -l {shlex.quote(path)}"
    return BadImage(f"Cannot read the image {path}", cause=error.strerror, hint=hint)


def _missing(path: str) -> BadImage:
    folder, wanted = os.path.split(path)
    cause, hint = "no such file", f"ls {shlex.quote(folder or '.')}"
    if path.startswith(("http://", "https://")):
        cause = "it is a web address, and mvw infer reads files"
        hint = f"curl -L -o {shlex.quote(free_name(wanted or 'image'))} {shlex.quote(path)}"
    elif os.path.islink(path):
        cause, hint = f"it is a link to {os.readlink(path)}", f"ls -l {shlex.quote(path)}"
    elif not os.path.isdir(folder or "."):
        cause, hint = f"there is no folder {folder}", "ls"
    elif like := closest(wanted, os.listdir(folder or ".")):
        cause, hint = f"did you mean {like}?", infer(os.path.join(folder, like))
    return BadImage(f"There is no image {path}", cause=cause, hint=hint)


def is_folder(path: str) -> BadImage:
    """Explain that a path is a folder."""
    cause, hint = "mvw infer takes files; mvw batch takes folders", f"ls {shlex.quote(path)}"
    return BadImage(f"{path} is a folder, not an image", cause=cause, hint=hint)


def is_special(path: str) -> BadImage:
    """Explain that a path is a pipe, a socket or a device."""
    return BadImage(
        f"Cannot read an image from {path}",
        cause="it is a pipe or a device, not a file",
        hint=f"ls -l {shlex.quote(path)}",
    )


def not_an_image(name: str, data: bytes) -> BadImage:
    """Explain that no decoder knows the bytes."""
    if not data:
        return _refused(name, "is empty", "it has 0 bytes")
    for is_one, cause, command in _KNOWN:
        if is_one(data):
            free = shlex.quote(_free_stem(os.path.splitext(name)[0]))
            hint = command.format(name=shlex.quote(name), free=free)
            if name == "-" and "{name}" in command:
                hint = infer(EXAMPLE_IMAGE)
            return BadImage(f"Cannot read the image {name}", cause=cause, hint=hint)
    cause = f"neither {_FORMATS}, or cut within its header"
    return _refused(name, "is not an image", cause)


def _free_stem(stem: str) -> str:
    """Name pictures that a hint's command makes: no file's name begins so yet."""
    names = chain([f"{stem}-picture"], (f"{stem}-picture{number}" for number in count(2)))
    return next(one for one in names if not glob(f"{escape(one)}*"))


def damaged(name: str, cause: str) -> BadImage:
    """Explain that decoding failed."""
    told = cause if cause and "\\x" not in cause else "its decoder gave up"  # not of bytes
    return _refused(name, "is cut short or damaged", told)


def too_many_pixels(name: str, pixels: int, limit: str, data: bytes) -> BadImage:
    """Explain that the header announces more pixels than are to be decoded.

    Args:
        limit: what limits them, and to how many.
    """
    if pixels > PIXELS_PER_BYTE * len(data):
        cause = f"its header tells of {pixels:,} pixels, with {len(data):,} bytes behind it"
        return damaged(name, cause)
    what = "Standard input" if name == "-" else f"The file {name}"
    return BadImage(
        f"{what} is too large to decode",
        cause=f"it has {pixels:,} pixels, and {limit}",
        hint=f"mvw infer IMAGE QUESTION --set images.max_decoded_pixels={pixels}",
    )


def too_many_bytes(name: str) -> BadImage:
    """Explain that a file is larger than any image."""
    cause = f"it has more bytes than the limit of {FILE_LIMIT:,}"
    return _refused(name, "is too large for an image", cause)


def infer(path: str) -> str:
    """Return a command that asks about another image."""
    return f'mvw infer {shlex.quote(path)} "{GENERAL_QUESTION}"'


def _refused(name: str, what: str, cause: str) -> BadImage:
    """Refuse the bytes of a file; the hint is a command that tells what they really are."""
    if name == "-":
        return BadImage(f"Standard input {what}", cause=cause, hint=infer(EXAMPLE_IMAGE))
    return BadImage(f"The file {name} {what}", cause=cause, hint=f"file {shlex.quote(name)}")
