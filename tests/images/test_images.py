"""Images as people have them: what is read, how it looks, and how the rest is refused."""

import hashlib
import os
import random
import shlex
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mvw_cli.errors import BadImage, ExitCode
from mvw_cli.images.problems import PIXEL_LIMIT
from mvw_cli.images.reading import fit, open_image

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def halves(mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Red on the left, blue on the right: turning and mirroring show."""
    image = Image.new("RGB", size, "blue")
    image.paste("red", (0, 0, size[0] // 2, size[1]))
    return image.convert(mode)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def near(
    image: Image.Image, at: tuple[int, int], colour: tuple[int, int, int], by: int = 3
) -> bool:
    pixel = image.getpixel(at)
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= by for a, b in zip(pixel, colour, strict=True))


def refused(source: object, **options: object) -> BadImage:
    with pytest.raises(BadImage) as caught:
        open_image(source, **options)  # type: ignore[arg-type]
    error = caught.value
    assert error.exit_code == ExitCode.BAD_IMAGE == 6
    assert error.cause and error.hint
    assert "\n" not in error.message + error.cause + error.hint
    shlex.split(error.hint)
    return error


# --- what is read ---


def test_the_file_is_described(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", halves())
    file = open_image(path)
    assert file.path == str(path)
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert file.size == file.original_size == file.image.size == (40, 20)
    assert file.image.mode == "RGB"
    from_bytes = open_image(path.read_bytes())
    assert (from_bytes.path, from_bytes.sha256) == ("-", file.sha256)
    assert from_bytes.image.tobytes() == file.image.tobytes()


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "tiff", "bmp", "ppm"])
def test_usual_formats(tmp_path: Path, ending: str) -> None:
    path = saved(tmp_path / f"a.{ending}", halves())
    image = open_image(path.rename(tmp_path / "whatever.dat")).image  # its name does not matter
    assert near(image, (5, 10), RED, by=8)
    assert near(image, (35, 10), (0, 0, 255), by=8)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, ending: str, orientation: int) -> None:
    upright = Image.new("RGB", (48, 32), "white")
    upright.paste("red", (0, 0, 24, 16))  # the upper left quarter
    stored_as = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(stored_as[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = open_image(saved(tmp_path / f"a.{ending}", stored, exif=exif))
    assert file.size == file.original_size == (48, 32)
    assert near(file.image, (4, 4), RED, by=30)
    for corner in ((44, 4), (4, 28), (44, 28)):
        assert near(file.image, corner, WHITE, by=30)


def test_a_damaged_exif_block_is_no_reason_to_refuse(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", halves(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_image(path).size == (40, 20)


def test_gif_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert open_image(path).image.getpixel((4, 4)) == RED


CLEAR = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
CLEAR.paste((255, 0, 0, 255), (0, 0, 20, 20))


@pytest.mark.parametrize(
    ("image", "ending", "left", "options"),
    [
        (CLEAR, "png", RED, {}),
        (CLEAR, "webp", RED, {"lossless": True}),
        (CLEAR, "tiff", RED, {}),
        (CLEAR.convert("LA"), "png", (76, 76, 76), {}),
        (CLEAR.convert("PA"), "tiff", RED, {}),
        (halves(), "png", RED, {"transparency": (0, 0, 255)}),
        (halves().quantize(2), "png", RED, {"transparency": 1}),
        (halves().quantize(2), "gif", RED, {"transparency": 1}),
    ],
)
def test_transparency_is_laid_on_white(
    tmp_path: Path, image: Image.Image, ending: str, left: tuple[int, int, int], options: Any
) -> None:
    read = open_image(saved(tmp_path / f"a.{ending}", image, **options)).image
    assert near(read, (5, 5), left)
    assert read.getpixel((35, 5)) == WHITE


def test_half_transparency(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGBA", (8, 8), (0, 0, 0, 128)))
    assert near(open_image(path).image, (6, 6), (127, 127, 127))


def test_one_bit_and_grey(tmp_path: Path) -> None:
    one = Image.new("1", (8, 8), 0)
    one.paste(1, (4, 0, 8, 8))
    read = open_image(saved(tmp_path / "a.png", one)).image
    assert (read.getpixel((1, 1)), read.getpixel((6, 6))) == (BLACK, WHITE)
    grey = open_image(saved(tmp_path / "b.png", Image.new("L", (8, 8), 100))).image
    assert grey.getpixel((1, 1)) == (100, 100, 100)


@pytest.mark.parametrize("ending", ["png", "tiff", "ppm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, ending: str) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    read = open_image(saved(tmp_path / f"a.{ending}", Image.fromarray(values))).image
    greys = [read.getpixel((x, 0)) for x in range(4)]
    assert greys == [BLACK, (1, 1, 1), (128, 128, 128), WHITE]
    values = np.array([[0, 255]], dtype=np.uint16)
    dark = open_image(saved(tmp_path / f"b.{ending}", Image.fromarray(values))).image
    assert dark.getpixel((1, 0)) == (1, 1, 1)  # not stretched: the file says what is white


@pytest.mark.parametrize(
    ("dtype", "values", "greys"),
    [
        (np.dtype(">u2"), [0, 128 * 257, 65535], [0, 128, 255]),  # big-endian
        (np.int32, [0, 128, 255], [0, 128, 255]),
        (np.int32, [0, 128 * 257, 65535], [0, 128, 255]),
        (np.int32, [-100, 0, 100], [0, 128, 255]),
        (np.float32, [0.0, 0.5, 1.0], [0, 128, 255]),
        (np.float32, [0.0, 100.0, 200.0], [0, 100, 200]),
        (np.float32, [float("nan"), float("inf"), 1.0], [0, 0, 255]),
        (np.float32, [-5.0, -5.0, -5.0], [0, 0, 0]),
    ],
)
def test_deep_greys_take_the_smallest_usual_range(
    tmp_path: Path, dtype: type, values: list[float], greys: list[int]
) -> None:
    image = Image.fromarray(np.array([values], dtype=dtype))
    read = open_image(saved(tmp_path / "a.tiff", image)).image.convert("L")
    assert [read.getpixel((x, 0)) for x in range(3)] == pytest.approx(greys, abs=1)


@pytest.mark.parametrize("ending", ["jpg", "tiff"])
def test_cmyk(tmp_path: Path, ending: str) -> None:
    # Pillow writes CMYK JPEGs inverted with an Adobe marker, as Photoshop does.
    path = saved(tmp_path / f"a.{ending}", halves("CMYK"))
    image = open_image(path).image
    assert near(image, (5, 10), RED, by=12)
    assert near(image, (35, 10), (0, 0, 255), by=12)


# --- scaling down ---


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_long_strip_is_scaled_with_its_aspect(tmp_path: Path, ending: str) -> None:
    path = saved(tmp_path / f"a.{ending}", halves(size=(12_000, 200)))
    assert open_image(path).size == (12_000, 200)
    file = open_image(path, max_pixels=60_000)
    width, height = file.size
    assert width * height <= 60_000
    assert width / height == pytest.approx(60, rel=0.05)
    assert file.original_size == (12_000, 200)
    assert near(file.image, (2, height // 2), RED, by=12)
    assert open_image(path, max_pixels=1).size == (1, 1)


def test_smaller_images_are_left_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", halves())
    assert open_image(path, max_pixels=800).image.tobytes() == open_image(path).image.tobytes()


def test_a_turned_jpeg_is_scaled_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.jpg", halves(size=(4000, 1000)), exif=exif)
    file = open_image(path, max_pixels=10_000)
    assert (file.size, file.original_size) == ((50, 200), (1000, 4000))


def test_fit_never_exceeds_the_limit_and_never_drops_a_side() -> None:
    dice = random.Random(0)
    for _ in range(2000):
        size = dice.randint(1, 20_000), dice.choice([1, 2, 7, dice.randint(1, 20_000)])
        limit = dice.choice([1, 2, 3, dice.randint(1, 10**6)])
        width, height = fit(size, limit)
        assert width >= 1 and height >= 1
        assert width * height <= limit
    assert fit((10, 10), None) == (10, 10)
    with pytest.raises(ValueError, match="1 or more"):
        fit((10, 10), 0)


# --- what is refused ---


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "tiff", "bmp", "avif"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated(tmp_path: Path, ending: str, part: float) -> None:
    noise = Image.effect_noise((64, 64), 60)
    path = saved(tmp_path / f"a.{ending}", noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    error = refused(path)
    assert "cut short or damaged" in error.message or "cut within its header" in str(error.cause)
    assert error.hint == f"file {path}"


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "tiff"])
def test_damaged_bytes_never_give_anything_but_an_image_or_a_message(
    tmp_path: Path, ending: str
) -> None:
    whole = saved(tmp_path / f"a.{ending}", halves()).read_bytes()
    for seed in range(20):
        data, dice = bytearray(whole), random.Random(seed)
        for _ in range(5):
            data[dice.randrange(len(data))] = dice.randrange(256)
        try:
            assert open_image(bytes(data)).image.mode == "RGB"
        except BadImage as error:
            assert error.cause and error.hint


@pytest.mark.parametrize(
    "data",
    [b"hello\n", b"BMW is a car\n", b"RIFF\0\0\0\0WAVEfmt ", b"\0", b""],
)
def test_not_an_image(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert refused(path).message.endswith("is not an image" if data else "is empty")
    assert refused(b"").message == "Standard input is empty"


def test_postscript_is_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.eps", Image.new("RGB", (4, 4)))
    assert refused(path).message.endswith("is not an image")


def test_iphone_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "IMG 1.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert refused(path).hint == 'pip install "mvw[heif]"'


def test_missing(tmp_path: Path) -> None:
    error = refused(tmp_path / "a.png")
    assert error.message == f"There is no image {tmp_path}/a.png"
    assert error.hint == f"ls {tmp_path}"
    assert "no folder" in str(refused(tmp_path / "no" / "a.png").cause)
    saved(tmp_path / "Scene.PNG", halves())
    error = refused(tmp_path / "scene.png") if sys.platform == "linux" else error
    assert error.cause == "did you mean Scene.PNG?"
    assert error.hint and error.hint.startswith(f"mvw infer {tmp_path}/Scene.PNG ")
    (tmp_path / "link.png").symlink_to("gone.png")
    error = refused(tmp_path / "link.png")
    assert error.cause == "it is a link to gone.png"
    assert error.hint == f"ls -l {tmp_path}/link.png"


def test_web_address() -> None:
    error = refused("https://example.com/cats/1.jpg?w=3")
    assert error.hint == "curl -L -o '1.jpg?w=3' 'https://example.com/cats/1.jpg?w=3'"


def test_folder(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert error.message == f"{tmp_path} is a folder, not an image"
    assert error.hint == f"ls {tmp_path}"


def test_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*arguments: object) -> int:  # permissions do not bind root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", deny)
    error = refused("a b.png")
    assert (error.cause, error.hint) == ("Permission denied", "ls -l 'a b.png'")


def test_a_fifo_without_a_writer_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert "Cannot read an image from" in reading(f"open_image({str(path)!r})")


def reading(code: str) -> str:
    """Run code in a process of its own; return its stderr."""
    code = f"from mvw_cli.images.reading import open_image; {code}"
    words = [sys.executable, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False).stderr


def test_devices_and_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused("/dev/zero")
    assert error.hint == "ls -l /dev/zero"
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        refused("socket")


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds almost nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "size",
    [(PIXEL_LIMIT + 1, 1), (10_000, 9_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)],
)
def test_decompression_bomb(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    error = refused(path)
    bytes_behind = path.stat().st_size
    assert error.cause == (
        f"its header tells of {size[0] * size[1]:,} pixels, with {bytes_behind} bytes behind it"
    )


def test_below_the_limit_is_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "strip.png"
    path.write_bytes(png_header(PIXEL_LIMIT, 1))
    assert "cut short" in refused(path).message


def test_gif_bomb(tmp_path: Path) -> None:
    data = bytearray(saved(tmp_path / "a.gif", halves()).read_bytes())
    data[6:10] = struct.pack("<HH", 60_000, 60_000)
    assert "3,600,000,000 pixels" in str(refused(bytes(data)).cause)


def test_a_file_larger_than_any_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    with path.open("wb") as file:
        file.truncate(5 << 30)  # sparse
    assert "1,073,741,824" in str(refused(path).cause)


def test_remarks_of_pillow_are_not_shown(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", halves(), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    code = f"open_image({str(path)!r}); import PIL.Image as i; i.open({str(path)!r}).getexif()"
    assert "Warning" not in reading(code)


@pytest.mark.parametrize("suffix", [".HEIC", ".jpg"])
def test_heif_is_read_by_what_it_is(tmp_path: Path, suffix: str) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    path = tmp_path / f"IMG_1{suffix}"
    halves().save(path, format="HEIF", quality=100)
    assert path.read_bytes()[4:8] == b"ftyp"
    file = open_image(path)
    assert file.size == (40, 20)
    assert near(file.image, (5, 10), RED, by=12)


def test_a_jpeg_named_heic_is_read_as_it_is(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.HEIC", format="JPEG", quality=100)
    assert near(open_image(tmp_path / "a.HEIC").image, (5, 10), RED, by=12)


def test_a_png_may_hold_megabytes_of_text_and_colours(tmp_path: Path) -> None:
    """As the files of image generators do: Pillow itself refuses them."""
    text = PngInfo()
    text.add_itxt("workflow", '{"id": 1},' * 300_000, zip=True)
    profile = bytes(3 << 20)
    saved(tmp_path / "a.png", halves(), pnginfo=text, icc_profile=profile)
    with pytest.raises(ValueError, match="too large"):
        Image.open(tmp_path / "a.png").load()
    assert near(open_image(tmp_path / "a.png").image, (5, 10), RED)


@pytest.mark.parametrize(
    ("data", "command"),
    [
        (b"%PDF-1.7\n", "pdftoppm"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "rsvg-convert"),
        (b"\0\0\0\x18ftypisom" + bytes(40), "ffmpeg"),
        (b"\x1aE\xdf\xa3" + bytes(40), "ffmpeg"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_what_people_take_for_an_image_is_named(tmp_path: Path, data: bytes, command: str) -> None:
    path = tmp_path / "a b.png"
    path.write_bytes(data)
    hint = refused(path).hint
    assert hint is not None and hint.startswith(command)
    # What it writes is no file that is read.
    assert shlex.split(hint).count(str(path)) <= 1
    assert refused(data).hint


def test_a_damaged_heif_photo_does_not_ask_for_what_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    path = tmp_path / "IMG_1.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert refused(path).hint == f"file {path}"
