"""`mvw infer` on images above the limit of the profile, and on files of several pictures."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

from hints import parse_hint
from PIL import Image
from processes import Ran


def test_the_profile_says_the_limit(infer: Callable[..., Ran], tmp_path: Path) -> None:
    path = tmp_path / "panorama.png"
    Image.effect_noise((40, 30), 60).save(path)
    low = ("--set", "images.max_decoded_pixels=1000")
    ran = infer(*low, image=path)
    assert ran.code == 6
    message, cause, hint = ran.err.splitlines()[-3:]
    assert (message, cause.strip()) == (
        f"Error: The file {path} is too large to decode",
        "it has 1,200 pixels, and images.max_decoded_pixels is 1,000",
    )
    command = hint.removeprefix("Hint: ")
    parse_hint(command)
    assert "images.max_decoded_pixels=1000" not in shlex.split(command)
    assert infer("--set", "images.max_decoded_pixels=1200", image=path).code == 0


def test_infer_tells_it_on_stderr_and_in_the_document(
    infer: Callable[..., Ran], tmp_path: Path
) -> None:
    path = tmp_path / "a\x1b[2Jb.gif"
    first, *others = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    first.save(path, save_all=True, append_images=others)
    ran = infer("--json", image=path)
    assert ran.code == 0, ran.err
    [remark] = json.loads(ran.out)["remarks"]
    assert remark == f"{path} holds several frames: the first was read."
    assert "holds several frames: the first was read." in ran.err and "\x1b" not in ran.err
