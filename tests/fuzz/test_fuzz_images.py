"""Bytes of images: a picture, or three lines that say what is wrong with it."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path

from fuzzing import damaged, fuzz, told
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from mvw_cli.errors import BadImage
from mvw_cli.images.problems import PIXEL_LIMIT
from mvw_cli.images.reading import open_image, upright_size

MOST = 2000
"""Pixels that are asked for."""
_SAVED = {
    "PNG": ("RGB", "RGBA", "P", "L", "LA", "I;16", "1"),
    "JPEG": ("RGB", "L", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "TIFF": ("RGB", "RGBA", "L", "CMYK", "I;16", "F", "1", "LAB", "YCbCr"),
    "BMP": ("RGB", "P", "1"),
    "PPM": ("RGB", "L", "1"),
    "JPEG2000": ("RGB", "LA"),
    "AVIF": ("RGB",),
    "HEIF": ("RGB", "RGBA"),
}
_TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
"""EXIF that tells to turn the picture."""
_OPTIONS: dict[str, tuple[dict[str, object], ...]] = {
    "TIFF": ({}, *({"compression": one} for one in ("tiff_lzw", "jpeg", "group4"))),
    "JPEG": ({}, {"progressive": True}, {"exif": _TURNED}),
    "PNG": ({}, {"exif": _TURNED}),
}


@cache
def saved(kind: str, mode: str, options: int, frames: int) -> bytes:
    """Return an image as Pillow writes it."""
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    base = Image.effect_noise((33, 21), 60)
    image = base.convert("F") if mode == "F" else base.convert("RGB")
    if mode == "LAB":
        image = Image.merge("LAB", (base,) * 3)
    elif mode == "I;16":
        image = base.convert("I;16")
    elif image.mode != mode:
        image = image.convert("L").convert(mode) if mode in ("1", "LA") else image.convert(mode)
    held, chosen = io.BytesIO(), _OPTIONS.get(kind, ({},))
    given = dict(chosen[options % len(chosen)])
    if given.get("compression") == "group4":
        image = base.convert("1")
    if given.get("compression") == "jpeg" and image.mode not in ("RGB", "L"):
        given = {}
    if frames > 1 and kind in ("GIF", "WEBP", "TIFF", "PNG"):
        given |= {"save_all": True, "append_images": [image] * (frames - 1)}
    image.save(held, kind, **given)
    return held.getvalue()


KINDS = [(kind, mode) for kind, modes in _SAVED.items() for mode in modes]


@st.composite
def images(draw: st.DrawFn) -> bytes:
    """The bytes of an image, most often damaged ones."""
    kind, mode = draw(st.sampled_from(KINDS))
    data = saved(kind, mode, draw(st.integers(0, 3)), draw(st.integers(1, 2)))
    if draw(st.integers(0, 9)) == 0:
        return data
    if draw(st.booleans()):  # damage of the header shows most
        head = draw(damaged(data[:80]))
        return head + data[80:]
    return draw(damaged(data))


def png(width: int, height: int, depth: int = 8, kind: int = 2, data: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


_SIDES = st.sampled_from((0, 1, 7, 9000, 65535, 2**31 - 1, 2**32 - 1))


@st.composite
def forged(draw: st.DrawFn) -> bytes:
    """A header that announces a size which the rest does not have."""
    width, height = draw(_SIDES), draw(_SIDES)
    short = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    match draw(st.sampled_from(("png", "bmp", "gif", "ppm", "jpeg", "tiff", "webp"))):
        case "png":
            depth, kind = draw(st.sampled_from((1, 2, 8, 16, 99))), draw(st.integers(0, 7))
            return png(width, height, depth, kind, zlib.compress(bytes(draw(st.integers(0, 999)))))
        case "bmp":
            info = struct.pack(
                "<IiiHHIIiiII",
                40,
                width & 0x7FFFFFFF,
                -(height & 0x7FFFFFFF),
                1,
                24,
                0,
                0,
                0,
                0,
                0,
                0,
            )
            return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info
        case "gif":
            return (
                b"GIF89a"
                + short
                + b"\x80\0\0"
                + bytes(6)
                + b",\0\0\0\0"
                + short
                + b"\0\x02\x01\0\0;"
            )
        case "ppm":
            return (
                draw(st.sampled_from((b"P6", b"P3", b"P5", b"P1")))
                + f" {width} {height} 255\n".encode()
            )
        case "jpeg":
            data = saved("JPEG", "RGB", 0, 1)
            at = data.index(b"\xff\xc0") + 5
            return data[:at] + struct.pack(">HH", height & 0xFFFF, width & 0xFFFF) + data[at + 4 :]
        case "tiff":
            entries = b"".join(
                struct.pack("<HHII", tag, 4, 1, value)
                for tag, value in (
                    (256, width),
                    (257, height),
                    (258, 8),
                    (259, 1),
                    (262, 1),
                    (273, 8),
                    (278, height),
                    (279, 2**31),
                )
            )
            return b"II*\0\x08\0\0\0" + struct.pack("<H", 8) + entries + bytes(4)
        case _:
            sides = b"".join((one & 0xFFFFFF).to_bytes(3, "little") for one in (width, height))
            return b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + sides


def look(data: bytes, source: Path | bytes) -> None:
    """Read an image; neither a size nor a picture comes of what can't be one."""
    size, error = told(lambda: upright_size(data, "x.png", MOST, PIXEL_LIMIT))
    found, wrong = told(lambda: open_image(source, max_pixels=MOST))
    assert wrong is None or isinstance(wrong, BadImage)
    assert error is None or wrong is not None  # what is refused by its header is not decoded
    if found is not None:
        assert found.image.mode == "RGB" and found.image.width * found.image.height <= MOST
        assert found.original_size == size


@fuzz(250)
@given(data=images())
def test_an_image_is_read_or_refused(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(data)
    look(data, file)
    assert file.read_bytes() == data


@fuzz(60)
@given(data=forged())
@example(data=png(2**32 - 1, 2**32 - 1))
def test_a_forged_size_is_refused(data: bytes) -> None:
    look(data, data)


@fuzz(40)
@given(data=st.binary(max_size=64))
def test_what_is_no_image_is_refused(data: bytes) -> None:
    look(data, data)
