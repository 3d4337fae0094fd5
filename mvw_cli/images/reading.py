"""Image files as people have them, read into the RGB that every processor takes.

Whatever cannot be read is a `BadImage` with a cause and a way out.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import stat
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from mvw_cli.images import problems

# Pillow's other formats are rarer than they are dangerous: EPS, for one, runs Ghostscript. The
# second row costs an import of every decoder, so it is tried only after the first.
_COMMON = ("PNG", "JPEG", "GIF", "BMP", "DIB", "PPM")
_FURTHER = ("WEBP", "TIFF", "AVIF", "JPEG2000", "HEIF")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_PNG_KEPT = (b"Raw profile type", b"XML:com.adobe.xmp")  # these may tell which way is up
_ORIENTATION = 0x0112  # EXIF tag

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


def open_image(
    source: str | Path | bytes, *, max_pixels: int | None = None, name: str = "-"
) -> ImageFile:
    """Read an image: a file by its path, or a file's bytes, which go by `name`.

    `max_pixels` scales a larger image down to at most that many pixels.

    Raises:
        BadImage: it is missing, unreadable, no image, damaged, or above the pixel limit.
    """
    if isinstance(source, bytes):
        data = source
    else:
        name = os.fspath(source)
        data = read_file(name)
    header = _identify(data, name)
    size = header.size
    if max_pixels is not None and header.format in ("JPEG", "MPO"):
        # A JPEG decodes to a half or a quarter for much less; three times the final size
        # leaves the filter all it needs (Pillow's Image.thumbnail, reducing_gap).
        width, height = fit(size, max_pixels)
        header.draft(None, (3 * width, 3 * height))
    try:
        header.load()
        image = to_rgb(_upright(header))
    except Exception as error:  # decoders raise whatever they like on damaged bytes
        raise problems.damaged(name, str(error)) from None
    target = fit(image.size, max_pixels)
    if target != image.size:
        image = image.resize(target, Image.Resampling.LANCZOS)
    digest = hashlib.sha256(data).hexdigest()
    return ImageFile(image, name, digest, image.size, _upright_size(header, size))


def upright_size(data: bytes, name: str) -> tuple[int, int]:
    """Return how wide and high an image is once it stands upright; its pixels are not decoded.

    Raises:
        BadImage: the bytes are no image, or one above the pixel limit.
    """
    header = _identify(data, name)
    return _upright_size(header, header.size)


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


def _identify(data: bytes, name: str) -> Image.Image:
    """Read the header alone, so that a bomb is refused before it goes off."""
    if len(data) > problems.FILE_LIMIT:
        raise problems.too_many_bytes(name)
    try:
        image = _open(_without_text(data) if data.startswith(_PNG) else data)
    except Image.DecompressionBombError:
        raise problems.too_many_pixels(name) from None
    except UnidentifiedImageError:
        raise problems.not_an_image(name, data) from None
    except Exception as error:  # as while decoding
        raise problems.damaged(name, str(error)) from None
    # Pillow itself only warns up to twice the limit.
    if image.width * image.height > problems.PIXEL_LIMIT:
        raise problems.too_many_pixels(name)
    if image.width * image.height == 0:
        raise problems.damaged(name, f"its size is {image.width}×{image.height}")
    return image


def _open(data: bytes) -> Image.Image:
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
