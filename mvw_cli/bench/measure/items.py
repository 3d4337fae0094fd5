"""What a measurement asks about: the user's own images, or generated ones.

It does not know what is measured.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mvw_cli.batch.source.listing import list_items
from mvw_cli.batch.source.paths import Source
from mvw_cli.bench.measure.job import ItemSpec
from mvw_cli.errors import UsageProblem

if TYPE_CHECKING:
    from mvw_cli.adapter import Adapter

QUESTION = "Describe this image in detail."
"""Asked of generated images, where the user asks nothing."""
_CELLS = 24


@dataclass(frozen=True, slots=True)
class Items:
    """The items, and where they come from."""

    items: tuple[ItemSpec, ...]
    source: Literal["given", "folder", "generated"]
    meaningful: bool
    """Whether answers to them tell anything: not so of noise."""


def own_items(source: Source, limit: int, *, one: bool) -> Items:
    """Take the user's images.

    Args:
        one: a single image was named, no folder or file of questions.

    Raises:
        MvwError: as `list_items`; or an image lies in a table or at an address.
    """
    found = []
    for item in islice(list_items(source), limit):
        if any(image.row is not None or "://" in image.path for image in item.images):
            raise UsageProblem(
                f"{item.id} is no file on this machine",
                cause="only images in files can be measured",
                hint=source.help,
            )
        paths = tuple(image.path for image in item.images)
        found.append(ItemSpec(paths, item.question, item.reference))
    return Items(tuple(found), "given" if one else "folder", meaningful=True)


def generated_items(
    adapter: Adapter, folder: Path, count: int, *, size: tuple[int, int], seed: int, question: str
) -> Items:
    """Draw pictures: those that the model can read, where its adapter has any, else noise.

    Args:
        folder: where the files go.
        size: width and height of the noise, in pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples = adapter.samples(folder, count, seed)
    if samples is not None:
        found = own_items(Source((), questions=str(samples)), count, one=False)
        return Items(found.items, "generated", meaningful=True)
    paths = [_noise(folder / f"{number}.png", size, seed + number) for number in range(count)]
    items = tuple(ItemSpec((str(path),), question) for path in paths)
    return Items(items, "generated", meaningful=False)


def _noise(path: Path, size: tuple[int, int], seed: int) -> Path:
    """Write smooth noise, which compresses and scales like a photograph rather than like static."""
    from PIL import Image

    pixels = random.Random(seed).randbytes(3 * _CELLS * _CELLS)
    small = Image.frombytes("RGB", (_CELLS, _CELLS), pixels)
    small.resize(size, Image.Resampling.BICUBIC).save(path)
    return path
