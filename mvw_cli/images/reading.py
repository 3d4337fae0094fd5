"""Image files as people have them, read into the RGB that every processor takes.

Whatever cannot be read is a `BadImage` with a cause and a way out.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import stat
import struct
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import jpeg_factory

from mvw_cli.images import problems
from mvw_cli.images.problems import PIXEL_LIMIT

# Pillow's other formats are rarer than they are dangerous: EPS, for one, runs Ghostscript. The
# second row costs an import of every decoder, so it is tried only after the first.
_COMMON = ("PNG", "JPEG", "GIF", "BMP", "DIB", "PPM")
_FURTHER = ("WEBP", "TIFF", "AVIF", "JPEG2000", "HEIF")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_PNG_KEPT = (b"Raw profile type", b"XML:com.adobe.xmp")  # these may tell which way is up
_ORIENTATION = 0x0112  # EXIF tag
_SUBFILE = 0x00FE  # TIFF tag: 1 is a smaller version of another page, 4 a mask
_LEVELS = 50
"""Smaller versions of a TIFF's page that are passed over in search of another page."""
LIMITED_BY = "images.max_decoded_pixels is"
_SEVERAL = {"TIFF": "pages", "MPO": "pictures", "HEIF": "pictures"}

# Pillow remarks on odd metadata. Silenced once: a filter is the process's, and threads read images.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image and the file it came from."""

    image: Image.Image
    """RGB, upright, transparency laid on white."""
    path: str
    """As the user gave it; `-` for standard input."""
    sha256: str
    """Of the file's bytes, not of the pixels."""
    size: tuple[int, int]
    """Width and height of `image`, in pixels."""
    original_size: tuple[int, int]
    """Width and height of the file's image, upright, in pixels."""
    remark: str | None = None
    """What the file holds that was not read; None: nothing."""


def open_image(
    source: str | Path | bytes,
    *,
    max_pixels: int | None = None,
    max_decoded_pixels: int = PIXEL_LIMIT,
    name: str = "-",
    limited_by: str = LIMITED_BY,
) -> ImageFile:
    """Read an image: a file by its path, or a file's bytes, which go by `name`.

    Args:
        max_pixels: to at most so many a larger image is scaled down.
        limited_by: what is said of `max_decoded_pixels` where an image has more.

    Raises:
        BadImage: it is missing, unreadable, no image, damaged, or would decode to more than
            `max_decoded_pixels`.
    """
    if isinstance(source, bytes):
        data = source
    else:
        name = os.fspath(source)
        data = read_file(name)
    header, size = _identify(data, name, max_pixels, max_decoded_pixels, limited_by)
    try:
        header.load()
        image = to_rgb(_upright(header))
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise problems.damaged(name, str(error)) from None
    target = fit(image.size, max_pixels)
    if target != image.size:
        image = image.resize(target, Image.Resampling.LANCZOS)
    digest = hashlib.sha256(data).hexdigest()
    remark = None
    if _has_several(header, data):
        known = "Standard input" if name == "-" else os.fsencode(name).decode(errors="replace")
        what = _SEVERAL.get(header.format or "", "frames")
        remark = f"{known} holds several {what}: the first was read."
    return ImageFile(image, name, digest, image.size, _upright_size(header, size), remark)


def upright_size(
    data: bytes, name: str, max_pixels: int | None, max_decoded_pixels: int
) -> tuple[int, int]:
    """Return how wide and high an image is once it stands upright; its pixels are not decoded.

    Raises:
        BadImage: as `open_image`, as far as that can be told without decoding.
    """
    return _upright_size(*_identify(data, name, max_pixels, max_decoded_pixels))


def read_file(path: str) -> bytes:
    """Read a regular file; anything else could block for ever or never end.

    Raises:
        BadImage: it is missing, unreadable, no regular file, or larger than any image.
    """
    try:
        # O_NONBLOCK: opening a FIFO without a writer would hang before it could be refused.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        raise problems.unopened(path, error) from None
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise problems.is_folder(path)
        if not stat.S_ISREG(status.st_mode):
            raise problems.is_special(path)
        if status.st_size > problems.FILE_LIMIT:
            raise problems.too_many_bytes(path)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise problems.unopened(path, error) from None
    finally:
        os.close(descriptor)


def _identify(
    data: bytes,
    name: str,
    max_pixels: int | None,
    limit: int,
    limited_by: str = LIMITED_BY,
) -> tuple[Image.Image, tuple[int, int]]:
    """Read the header alone, so that a bomb is refused before it goes off.

    Returns:
        The image to be loaded, which a JPEG may be at a reduced size, and its size as it is.
    """
    if len(data) > problems.FILE_LIMIT:
        raise problems.too_many_bytes(name)
    if limit > PIXEL_LIMIT and Image.MAX_IMAGE_PIXELS is not None:
        # Pillow's own limit is the process's. It refuses before canvases are made: it stays.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limit)
    try:
        header = _open(_without_text(data) if data.startswith(_PNG) else data)
        size = header.size
        pixels = size[0] * size[1]
        is_jpeg = pixels and header.format in ("JPEG", "MPO")
        if is_jpeg and max_pixels is not None and (pixels <= limit or _decodes_by_rows(data)):
            header = _reduced(header, data, max_pixels, min(limit, PIXEL_LIMIT))
    except Image.DecompressionBombError as error:
        pixels = int(re.findall(r"\d+", str(error))[0])
        raise problems.too_many_pixels(name, pixels, f"{limited_by} {limit:,}", data) from None
    except UnidentifiedImageError:
        raise problems.not_an_image(name, data) from None
    except Exception as error:  # as while decoding
        raise problems.damaged(name, str(error)) from None
    # Pillow itself only warns up to twice the limit.
    is_forged = is_jpeg and pixels > problems.PIXELS_PER_BYTE * len(data)
    if is_forged or header.width * header.height > limit:
        raise problems.too_many_pixels(name, pixels, f"{limited_by} {limit:,}", data)
    if pixels == 0:
        raise problems.damaged(name, f"its size is {size[0]}×{size[1]}")
    return header, size


def _reduced(header: Image.Image, data: bytes, max_pixels: int, limit: int) -> Image.Image:
    """Have a JPEG decoded to a half, a quarter or an eighth, which costs much less.

    Three times the final size leaves the filter all it needs (Pillow's `Image.thumbnail`,
    `reducing_gap`); where that is above the limit, less will do.
    """
    width, height = fit(header.size, max_pixels)
    for gap in (3, 2, 1):
        header = header if gap == 3 else _open(data)
        header.draft(None, (gap * width, gap * height))
        if header.width * header.height <= limit:
            break
    return header


def _decodes_by_rows(data: bytes) -> bool:
    """Whether a JPEG has all in one scan; else libjpeg holds the whole of it at its full size."""
    at, components = 2, 0
    while data[at : at + 1] == b"\xff":
        marker = data[at + 1]
        if marker in (0xC0, 0xC1):  # sequential; of the others, none
            components = data[at + 9]
        elif marker == 0xDA:
            return data[at + 4] == components
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return False


def _has_several(header: Any, data: bytes) -> bool:
    """Whether it is an animation, a TIFF of several pages, or an MPO of several views."""
    with suppress(Exception):  # what comes after the first may be damaged
        if header.format == "MPO":  # a phone's photo brings a gain map or a depth picture
            kinds = [entry["Attribute"]["MPType"] for entry in header.mpinfo[0xB002]]
            return any(kind.startswith("Multi-Frame") for kind in kinds)
        if header.format not in ("GIF", "TIFF"):
            return bool(getattr(header, "n_frames", 1) > 1)
        again: Any = _open(data)  # these two are told by seeking, and the first would be lost
        if header.format == "GIF":
            return bool(again.is_animated)
        for page in range(1, _LEVELS):
            again.seek(page)
            if not again.tag_v2.get(_SUBFILE, 0) & 5:
                return True
    return False


def _open(data: bytes) -> Image.Image:
    if data.startswith(b"\xff\xd8"):
        with suppress(SyntaxError, IndexError, TypeError, struct.error):
            # Image.open would refuse by its size what is decoded at a reduced one.
            return jpeg_factory(io.BytesIO(data))
    try:
        return Image.open(io.BytesIO(data), formats=_COMMON)
    except UnidentifiedImageError:
        Image.init()
        if data[4:8] == b"ftyp":
            with suppress(ImportError):
                import pillow_heif

                pillow_heif.register_heif_opener()
        built_in = [name for name in _FURTHER if name in Image.OPEN]
        return Image.open(io.BytesIO(data), formats=built_in)


def _without_text(data: bytes) -> bytes:
    """Leave out what a PNG holds of text and colour profiles.

    Nothing of it is looked at, Pillow refuses a megabyte, and image generators write more.
    """
    kept, at = [_PNG], len(_PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        is_text = data[at + 4 : at + 8] in _PNG_TEXT
        if not is_text or data.startswith(_PNG_KEPT, at + 8):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 is upright, and what a damaged block is taken for."""
    try:
        told = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return told if told in range(1, 9) else 1


def _upright(image: Image.Image) -> Image.Image:
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def _upright_size(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    return size[::-1] if _orientation(image) >= 5 else size


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image to 8-bit RGB: transparency goes on white, deep greys are scaled."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct way from La to RGBA
    if not image.has_transparency_data:
        return image.convert("RGB")
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


def fit(size: tuple[int, int], max_pixels: int | None) -> tuple[int, int]:
    """Scale a size down to at most so many pixels; the aspect ratio stays, no side drops below 1.

    Raises:
        ValueError: `max_pixels` is below 1.
    """
    width, height = size
    if max_pixels is None or width * height <= max_pixels:
        return size
    if max_pixels < 1:
        raise ValueError("max_pixels must be 1 or more")
    scale = math.sqrt(max_pixels / (width * height))
    width, height = max(1, int(width * scale)), max(1, int(height * scale))
    if width == 1 or height == 1:  # a side held at 1 has given too little: the other gives more
        return min(width, max_pixels), min(height, max_pixels)
    return width, height


def _deep_grey(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float greys to 8 bits; `convert` would clip them at 255.

    Only 16-bit files say which values are black and white. For the others the smallest usual range
    that holds all values is taken, and the image's own range where none does.
    """
    import numpy as np  # here, because few images need it

    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    sixteen = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    usual = (65535,) if sixteen else (1, 255, 65535)
    if low >= 0:
        low, high = 0, next((top for top in usual if high <= top), high)
    grey = (values - low) * (255 / ((high - low) or 1))
    return Image.fromarray(grey.round().astype("uint8"))
