"""The errors of image files, each with its cause and a command to type next."""

from __future__ import annotations

import difflib
import os
import shlex

from mvw_cli.errors import BadImage

GENERAL_QUESTION = "What is in the picture?"
"""Asked in hints that are about an image, where the user's own question is not known."""
EXAMPLE_IMAGE = "scene.png"

PIXEL_LIMIT = 89_478_485
"""Larger images are refused before they are decoded: the size at which Pillow warns of a bomb."""

FILE_LIMIT = 1 << 30
"""Bytes of a file. No sensible encoding of PIXEL_LIMIT pixels needs more."""

_SIGNATURES = (
    b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*",
    b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n", b"\0\0\0\x0cjP",
)  # fmt: skip
_HEIF = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc")
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif")


def unopened(path: str, error: OSError | ValueError) -> BadImage:
    """Explain why a path could not be opened or read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
        return _missing(path)
    if isinstance(error, PermissionError):
        hint = f"chmod +r {shlex.quote(path)}"
        return BadImage(f"Cannot read the image {path}", cause="permission denied", hint=hint)
    return BadImage(f"Cannot read the image {path}", cause=error.strerror, hint=_file(path))


def is_folder(path: str) -> BadImage:
    """Explain that a path is a folder, and name an image in it."""
    try:
        names = os.listdir(path)
    except OSError:
        names = []
    images = sorted(name for name in names if name.lower().endswith(_ENDINGS))
    hint = infer(os.path.join(path, images[0])) if images else f"ls {shlex.quote(path)}"
    cause = f"images directly in it: {len(images)}"
    return BadImage(f"{path} is a folder, not an image", cause=cause, hint=hint)


def is_special(path: str) -> BadImage:
    """Explain that a path is a pipe, a socket or a device."""
    return BadImage(
        f"Cannot read an image from {path}",
        cause="it is a pipe or a device, not a file",
        hint=f"cat {shlex.quote(path)} | {infer('-')}",
    )


def empty(name: str) -> BadImage:
    """Explain that there are no bytes."""
    return BadImage(
        f"{_what(name)} is empty",
        cause="it has 0 bytes",
        hint=infer(EXAMPLE_IMAGE) if name == "-" else f"ls -l {shlex.quote(name)}",
    )


def unidentified(name: str, data: bytes) -> BadImage:
    """Explain that no decoder knows the bytes."""
    if data.startswith(_SIGNATURES) or data[8:12] == b"WEBP" or data[4:12] == b"ftypavif":
        return damaged(name, "it ends within its header")
    if data[4:12] in _HEIF:
        target = os.path.splitext(name)[0] + ".jpg"
        return BadImage(
            f"Cannot read the image {name}",
            cause="it is a HEIF/HEIC photo, which has to be converted first",
            hint=f"heif-convert {shlex.quote(name)} {shlex.quote(target)}",
        )
    known = "PNG, JPEG, WebP, GIF, TIFF, BMP, PPM, AVIF nor JPEG 2000"
    return BadImage(f"{_what(name)} is not an image", cause=f"neither {known}", hint=_file(name))


def damaged(name: str, cause: str) -> BadImage:
    """Explain that decoding failed."""
    return BadImage(
        f"{_what(name)} is cut short or damaged",
        cause=cause or "its decoder gave up",
        hint=_save(name, "ImageFile.LOAD_TRUNCATED_IMAGES = True", "", "part"),
    )


def too_many_pixels(name: str) -> BadImage:
    """Explain that the header announces more pixels than are safe to decode."""
    return BadImage(
        f"{_what(name)} is too large to decode safely",
        cause=f"it has more pixels than the limit of {PIXEL_LIMIT:,}",
        hint=_shrink(name),
    )


def too_many_bytes(name: str) -> BadImage:
    """Explain that a file is larger than any image."""
    return BadImage(
        f"{_what(name)} is too large for an image",
        cause=f"it has more bytes than the limit of {FILE_LIMIT:,}",
        hint=_file(name),
    )


def out_of_memory(name: str, size: tuple[int, int]) -> BadImage:
    """Explain that memory ran out while decoding."""
    cause = f"too little memory for {size[0]}×{size[1]} pixels"
    return BadImage(f"{_what(name)} cannot be decoded", cause=cause, hint=_shrink(name))


def infer(path: str) -> str:
    """Return a command that asks about another image."""
    return f'mvw infer {shlex.quote(path)} "{GENERAL_QUESTION}"'


def _missing(path: str) -> BadImage:
    if path.startswith(("http://", "https://")):
        name = path.rstrip("/").rpartition("/")[2] or "image"
        return BadImage(
            f"There is no image {path}",
            cause="it is a web address, and mvw reads files",
            hint=f"curl -L -o {shlex.quote(name)} {shlex.quote(path)}",
        )
    folder, wanted = os.path.split(path)
    cause, hint = "no such file", f"ls {shlex.quote(folder or '.')}"
    try:
        names = {name.lower(): name for name in os.listdir(folder or ".")}
    except (OSError, ValueError):
        names, cause, hint = {}, f"there is no folder {folder}", "ls"
    for close in difflib.get_close_matches(wanted.lower(), names, n=1):
        like = names[close]
        cause, hint = f"did you mean {like}?", infer(os.path.join(folder, like))
    return BadImage(f"There is no image {path}", cause=cause, hint=hint)


def _what(name: str) -> str:
    return "Standard input" if name == "-" else f"The file {name}"


def _file(name: str) -> str:
    """Return a command that tells what the bytes really are."""
    return "mvw infer --help" if name == "-" else f"file {shlex.quote(name)}"


def _shrink(name: str) -> str:
    return _save(name, "Image.MAX_IMAGE_PIXELS = None", "i.thumbnail((4096, 4096)); ", "small")


def _save(name: str, setting: str, action: str, suffix: str) -> str:
    """Return a command with which a user who trusts the file saves what Pillow makes of it."""
    if name == "-":
        return "mvw infer --help"
    target = f"{os.path.splitext(name)[0]}-{suffix}.png"
    code = (
        f"from PIL import Image, ImageFile; {setting}; "
        f"i = Image.open({name!r}); {action}i.save({target!r})"
    )
    return f"python -c {shlex.quote(code)}"
