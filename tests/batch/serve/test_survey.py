"""What `mvw batch --dry-run` estimates, of items that can't all be answered."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mvw_cli.batch.items import ImageRef, Item
from mvw_cli.batch.serve.capacity import survey
from mvw_cli.profiles.resolution import resolve

REFUSED = (7200, 30)
"""In pixels. Kimi-VL reads 511 patches of 14 px a side, Qwen2.5-VL no side 200 times the other."""


def items(folder: Path, *sizes: tuple[int, int]) -> list[Item]:
    made = []
    for number, size in enumerate(sizes):
        path = folder / f"{number}.png"
        Image.new("L", size).save(path)
        made.append(Item(str(number), (ImageRef(str(path)),), "How many?"))
    return made


@pytest.mark.parametrize("name", ["kimi-vl", "qwen2.5-vl-7b"])
def test_an_image_that_the_model_refuses_counts_as_unreadable(name: str, tmp_path: Path) -> None:
    listed = items(tmp_path, (112, 112), REFUSED, (56, 56), (56, 56))
    (tmp_path / "broken.png").write_bytes(b"no image")
    listed.append(Item("broken", (ImageRef(str(tmp_path / "broken.png")),), "How many?"))
    found = survey(listed, resolve(name, {}).profile, slots=2, kv_bytes=None)
    assert (found.sampled, found.unreadable) == (5, 2)
    assert found.vision_tokens == (4, 16)  # squares of 28 px
    assert found.limits is not None
    assert found.limits.slots == 2


def test_where_the_model_refuses_every_image(tmp_path: Path) -> None:
    listed = items(tmp_path, REFUSED)
    found = survey(listed, resolve("kimi-vl", {}).profile, slots=None, kv_bytes=None)
    assert (found.sampled, found.unreadable, found.vision_tokens) == (1, 1, None)
    assert found.weight_bytes is not None
