"""Images above the pixel limit, and files of several pictures: bytes as PIL writes them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from mvw_cli.errors import BadImage
from mvw_cli.images import reading
from mvw_cli.images.reading import fit, open_image, upright_size

LIMIT, TARGET = 600_000, 100_000
SIZE = (1600, 1200)


@pytest.fixture(autouse=True)
def _pillows_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is the process's, and restored."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


def scenery(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """Something like a photograph: smooth, with detail, no two corners the same."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    large = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    large.paste("red", (0, 0, size[0] // 8, size[1] // 8))
    return large.convert(mode)


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def refused(data: bytes, **options: Any) -> BadImage:
    with pytest.raises(BadImage) as caught:
        open_image(data, **options)
    return caught.value


@contextmanager
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """The sizes at which JPEGs are decoded."""
    sizes, load = [], JpegImagePlugin.JpegImageFile.load

    def counting(self: Any) -> Any:
        sizes.append(self.size)
        return load(self)

    with monkeypatch.context() as patched:
        patched.setattr(JpegImagePlugin.JpegImageFile, "load", counting)
        yield sizes


def mpo(kind: int = 0) -> bytes:
    """Two pictures as PIL writes them; `kind` is their MP type, of CIPA DC-007."""
    second = scenery(size=(160, 120))
    data = bytearray(encoded(scenery(), "MPO", save_all=True, append_images=[second], quality=95))
    if kind:
        for attribute in (0x030000, 0):  # of PIL: a baseline primary, and one undefined
            at = data.index(struct.pack("<L", attribute), data.index(b"MPF\0") + 50)
            data[at : at + 4] = struct.pack("<L", kind)
    return bytes(data)


# --- the limit ---


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"subsampling": 0, "quality": 95, "exif": 6}),
        ("CMYK", {"quality": 95}),
        ("L", {"exif": 3}),
        ("MPO", {}),
    ],
)
@pytest.mark.parametrize("limit", [1_000_000, 200_000])
def test_a_large_jpeg_is_decoded_at_a_reduced_size_and_looks_the_same(
    mode: str, options: dict[str, Any], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if turned := options.pop("exif", None):
        exif = Image.Exif()
        exif[0x0112] = turned
        options = {**options, "exif": exif}
    data = mpo() if mode == "MPO" else encoded(scenery(mode), **options)
    assert "too large" in refused(data, max_decoded_pixels=limit).message
    with decoded(monkeypatch) as sizes:
        file = open_image(data, max_pixels=TARGET, max_decoded_pixels=limit)
    [(width, height)] = set(sizes)
    least = fit(SIZE, TARGET)
    assert width * height <= limit and width >= least[0] and height >= least[1]
    whole = open_image(data)
    assert file.original_size == whole.size == (SIZE[::-1] if turned == 6 else SIZE)
    assert file.size == fit(whole.size, TARGET)
    right = whole.image.resize(file.size, Image.Resampling.LANCZOS)
    difference = np.abs(np.asarray(right, float) - np.asarray(file.image, float))
    assert difference.mean() < 1.5
    assert upright_size(data, "-", TARGET, limit) == whole.size


def test_a_jpeg_of_90_million_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("L", (10_000, 9_000), 77))
    assert "max_decoded_pixels=90000000" in str(refused(data).hint)
    with decoded(monkeypatch) as sizes:
        file = open_image(data, max_pixels=50_000)
    assert set(sizes) == {(1250, 1125)} and file.original_size == (10_000, 9_000)
    assert file.image.getpixel((5, 5)) == (77, 77, 77)


def test_below_the_limit_a_jpeg_is_read_as_ever() -> None:
    for options in ({}, {"progressive": True}):
        data = encoded(scenery(), **options)
        size = fit(SIZE, TARGET)
        image = Image.open(io.BytesIO(data))
        image.draft(None, (3 * size[0], 3 * size[1]))
        image.load()
        expected = image.resize(size, Image.Resampling.LANCZOS).tobytes()
        assert open_image(data, max_pixels=TARGET).image.tobytes() == expected
        assert open_image(data).image.tobytes() == Image.open(io.BytesIO(data)).tobytes()


def test_a_higher_limit_changes_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the same log may go on with it."""
    monkeypatch.setattr(reading, "PIXEL_LIMIT", 200_000)
    data = encoded(scenery())
    one, other = (
        open_image(data, max_pixels=TARGET, max_decoded_pixels=limit).image.tobytes()
        for limit in (200_000, 10**9)
    )
    assert one == other


def test_what_libjpeg_holds_whole_is_not_decoded_at_a_reduced_size() -> None:
    progressive = encoded(scenery(), progressive=True)
    scans = bytearray(encoded(scenery()))
    scans[scans.index(b"\xff\xda") + 4] = 1  # a scan for each component
    for data in (progressive, bytes(scans)):
        error = refused(data, max_pixels=TARGET, max_decoded_pixels=LIMIT)
        assert error.cause == "it has 1,920,000 pixels, and images.max_decoded_pixels is 600,000"
    assert open_image(progressive, max_pixels=TARGET, max_decoded_pixels=1_920_000)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "GIF", "BMP"])
def test_a_panorama_is_read_once_the_limit_is_raised(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond Pillow's own limit as well, which it raises at twice the number."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(reading, "PIXEL_LIMIT", 1000)
    data = encoded(Image.effect_noise((80, 60), 60), format)
    for target in (None, 500):  # nothing but a JPEG is decoded at a reduced size
        error = refused(data, max_pixels=target, max_decoded_pixels=1000)
        assert error.message == "Standard input is too large to decode"
        assert error.cause == "it has 4,800 pixels, and images.max_decoded_pixels is 1,000"
        assert str(error.hint).endswith("--set images.max_decoded_pixels=4800")
    assert open_image(data, max_decoded_pixels=4800).size == (80, 60)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP"])
@pytest.mark.parametrize("side", [10_000, 16_000])
def test_a_forged_header_is_damage_and_no_reason_to_raise_the_limit(format: str, side: int) -> None:
    data = bytearray(encoded(Image.new("RGB", (8, 8)), format))
    if format == "PNG":
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif format == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif format == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", side, side)
    else:
        data[26:30] = struct.pack("<HH", side, side)
    error = refused(bytes(data))
    assert "cut short or damaged" in error.message
    assert "max_decoded_pixels" not in f"{error.cause} {error.hint}"
    if format != "WEBP" or side == 16_000:
        assert f"{side * side:,} pixels, with {len(data):,} bytes behind it" in str(error.cause)
    for options in ({"max_pixels": TARGET}, {"max_decoded_pixels": 10**9}):
        if format == "JPEG" or "max_pixels" in options:
            assert "cut short or damaged" in refused(bytes(data), **options).message


# --- several pictures ---


def frames(count: int = 3) -> list[Image.Image]:
    return [scenery(size=(48 + 16 * (n == 9), 32)).rotate(90 * n) for n in range(count)]


def animated(format: str, **options: Any) -> bytes:
    first, *others = frames()
    return encoded(first, format, save_all=True, append_images=others, **options)


def pyramid() -> bytes:
    """A page, and the same at half its size, as whole-slide scanners and maps have it."""
    second = scenery(size=(24, 16))
    second.encoderinfo = {"tiffinfo": {254: 1}}
    return encoded(scenery(size=(48, 32)), "TIFF", save_all=True, append_images=[second])


SEVERAL = {
    "a.gif": (lambda: animated("GIF"), "frames"),
    "a.webp": (lambda: animated("WEBP"), "frames"),
    "a.png": (lambda: animated("PNG"), "frames"),
    "a.avif": (lambda: animated("AVIF"), "frames"),
    "a.tiff": (lambda: animated("TIFF"), "pages"),
    "deflate.tif": (lambda: animated("TIFF", compression="tiff_adobe_deflate"), "pages"),
    "big.tiff": (lambda: animated("TIFF", big_tiff=True), "pages"),
    "3d.mpo": (lambda: mpo(0x020002), "pictures"),
    "views.jpg": (lambda: mpo(0x020003), "pictures"),
    "phone.jpg": (mpo, None),
    "slide.tiff": (pyramid, None),
    **{
        f"one.{format.lower()}": (lambda format=format: encoded(frames()[0], format), None)
        for format in ("GIF", "WEBP", "PNG", "TIFF", "JPEG", "BMP", "AVIF")
    },
}


@pytest.mark.parametrize("name", SEVERAL)
def test_the_first_is_read_and_a_remark_says_so(name: str, tmp_path: Path) -> None:
    make, what = SEVERAL[name]
    path = tmp_path / name
    path.write_bytes(make())
    file = open_image(path)
    told = None if what is None else f"{path} holds several {what}: the first was read."
    assert file.remark == told
    with Image.open(path) as image:
        assert file.image.tobytes() == image.convert("RGB").tobytes()
    if what is not None:
        assert (
            open_image(path.read_bytes()).remark
            == f"Standard input holds several {what}: the first was read."
        )


@pytest.mark.parametrize("name", ["a.gif", "a.tiff", "a.webp", "a.png"])
def test_damage_behind_the_first_is_no_failure_of_it(name: str) -> None:
    data = SEVERAL[name][0]()
    for part in range(50, 100, 7):
        try:
            file = open_image(data[: len(data) * part // 100])
        except BadImage:
            continue
        assert file.image.size == (48, 32)


def test_sixteen_bits_on_several_pages() -> None:
    pages = [Image.fromarray(np.full((8, 9), value, np.uint16)) for value in (32_896, 9)]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:], big_tiff=True)
    file = open_image(data)
    assert file.image.getpixel((3, 3)) == (128, 128, 128)
    assert file.remark is not None and "several pages" in file.remark
